"""A discriminator of patches (Isola et al. 2017, arXiv 1611.07004), as latent diffusion's autoencoders had it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models import initial
from jaxcxr.models.config import DiscriminatorConfig
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.layers import conv

_SLOPE = 0.2
_LEAST = 24  # pixels of a side; a smaller image leaves no output after the five convolutions


class PatchDiscriminator(nnx.Module):
    """Convolutions of 4 × 4, three of which halve the image; names are those of CompVis' `NLayerDiscriminator`.

    Args:
        config: a `DiscriminatorConfig` or its values.
        dtype: of the computation; parameters are float32.
        rngs: its `params` stream draws the initial parameters, kernels from N(0, 0.02²).
    """

    def __init__(
        self, config: Mapping[str, Any] | DiscriminatorConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config = DiscriminatorConfig.from_dict(config)
        self.dtype = dtype
        widths = [config.width * 2**level for level in range(4)]
        before = config.in_channels
        layers: Any = nnx.List()
        for level, width in enumerate((*widths, 1)):
            layers.append(
                conv(
                    before,
                    width,
                    4,
                    stride=2 if level < 3 else 1,
                    padding=(1, 1),
                    kernel_init=initial.normal(0.02),
                    use_bias=level in (0, 4),
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            if 0 < level < 4:
                layers.append(BatchNorm(width, rngs=rngs))
            if level < 4:
                layers.append(LeakyRelu())
            before = width
        self.main = layers

    def __call__(self, images: jax.Array) -> jax.Array:
        """A logit for each patch, 70 × 70 pixels, that it is of an image: `(B, H, W, C) -> (B, h, w, 1)`, in [−1, 1].

        Raises:
          UserError: a side has less than 24 pixels.
        """
        if min(images.shape[1:3]) < _LEAST:
            height, width = images.shape[1:3]
            raise UserError(f"images: are of {height} x {width} pixels; a discriminator needs {_LEAST} or more a side")
        hidden_states = images.astype(self.dtype)
        for layer in self.main:
            hidden_states = layer(hidden_states)
        return hidden_states


class LeakyRelu(nnx.Module):
    """x where it is positive, a fifth of it elsewhere."""

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns an array of the same shape."""
        return jax.nn.leaky_relu(hidden_states, _SLOPE)
