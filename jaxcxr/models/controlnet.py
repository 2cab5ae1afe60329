"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of a U-Net's first half that sees an image as well."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.models import initial
from jaxcxr.models.config import ControlNetConfig
from jaxcxr.models.layers import Mlp, conv
from jaxcxr.models.unet import down_blocks, mid_block, time_waves


class ControlNetModel(nnx.Module):
    """What is added to a U-Net's skips and middle for a condition image, parameter for parameter diffusers'.

    Args:
        config: a `config.json` of diffusers, or the dataclass it becomes.
        dtype: of the computation; parameters are float32.
        rngs: its `params` stream draws the initial parameters.

    Raises:
        UserError: the configuration asks for something that is not implemented.
    """

    def __init__(self, config: Mapping[str, Any] | ControlNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config = ControlNetConfig.from_dict(config)
        self.dtype = dtype
        channels = config.block_out_channels
        self.conv_in = conv(config.in_channels, channels[0], config.conv_in_kernel, dtype=dtype, rngs=rngs)
        self.time_embedding = Mlp(channels[0], config.time_embed_dim, dtype=dtype, rngs=rngs)
        self.controlnet_cond_embedding = ConditionEmbedding(config, dtype=dtype, rngs=rngs)
        self.down_blocks, skip_channels = down_blocks(config, dtype, rngs)
        self.mid_block = mid_block(config, dtype, rngs)
        self.controlnet_down_blocks = nnx.List(_zero_conv(width, width, 1, dtype, rngs) for width in skip_channels)
        self.controlnet_mid_block = _zero_conv(channels[-1], channels[-1], 1, dtype, rngs)

    def __call__(
        self, sample: jax.Array, timesteps: jax.Array, encoder_hidden_states: jax.Array, condition: jax.Array
    ) -> tuple[jax.Array, ...]:
        """What `UNet2DConditionModel` takes as `residuals`.

        Args:
            sample: the U-Net's, `(B, h, w, in_channels)`.
            timesteps: the U-Net's, `(B,)`.
            encoder_hidden_states: what its cross-attention sees, `(B, L, cross_attention_dim)`.
            condition: an image in [0, 1], `(B, H, W, conditioning_channels)`; see `ConditionEmbedding`.
        """
        temb = self.time_embedding(time_waves(self.config, timesteps).astype(self.dtype))
        context = encoder_hidden_states.astype(self.dtype)
        hidden_states = self.conv_in(sample.astype(self.dtype)) + self.embed(condition)
        found = [hidden_states]
        for down_block in self.down_blocks:
            hidden_states, skips = down_block(hidden_states, temb, context)
            found += skips
        middle = self.controlnet_mid_block(self.mid_block(hidden_states, temb, context))
        return (*(block(x) for block, x in zip(self.controlnet_down_blocks, found, strict=True)), middle)

    def embed(self, condition: jax.Array) -> jax.Array:
        """The condition image as `conv_in`'s output is, `(B, h, w, block_out_channels[0])`."""
        return self.controlnet_cond_embedding(condition.astype(self.dtype))


class ConditionEmbedding(nnx.Module):
    """From an image to the size of its latents: each width of `conditioning_embedding_out_channels` after the first
    halves the side, so an autoencoder that shrinks by 2^n needs n + 1 of them."""

    def __init__(self, config: ControlNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        widths = config.conditioning_embedding_out_channels
        self.conv_in = conv(config.conditioning_channels, widths[0], dtype=dtype, rngs=rngs)
        blocks = []
        for narrow, wide in itertools.pairwise(widths):
            blocks.append(conv(narrow, narrow, dtype=dtype, rngs=rngs))
            blocks.append(conv(narrow, wide, stride=2, dtype=dtype, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.conv_out = _zero_conv(widths[-1], config.block_out_channels[0], 3, dtype, rngs)

    def __call__(self, condition: jax.Array) -> jax.Array:
        """`(B, H, W, conditioning_channels) -> (B, H / 2^n, W / 2^n, block_out_channels[0])`."""
        hidden_states = nnx.silu(self.conv_in(condition))
        for block in self.blocks:
            hidden_states = nnx.silu(block(hidden_states))
        return self.conv_out(hidden_states)


def _zero_conv(in_channels: int, out_channels: int, kernel_size: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution that adds nothing before it has learnt."""
    return conv(in_channels, out_channels, kernel_size, kernel_init=initial.zeros, dtype=dtype, rngs=rngs)
