"""The layers that the U-Net and the autoencoder are made of. Images are NHWC throughout.

Parameters are float32 whatever the compute `dtype`. Kernels start as PyTorch starts them, uniform within
±1/sqrt(fan_in); biases start at zero, where PyTorch draws them from the same range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models import initial
from jaxcxr.models.compute import PORTABLE, rematerialized


def linear(in_features: int, out_features: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer `(..., in_features) -> (..., out_features)` with PyTorch's initial kernel."""
    return nnx.Linear(
        in_features, out_features, use_bias=bias, kernel_init=initial.torch_kernel(), dtype=dtype, rngs=rngs
    )


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer = initial.zeros,
    use_bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 2D convolution `(B, H, W, in) -> (B, H', W', out)`; `padding` is (before, after) on both axes."""
    before, after = padding if padding is not None else ((kernel_size - 1) // 2,) * 2
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((before, after), (before, after)),
        kernel_init=kernel_init or initial.torch_kernel(),
        bias_init=bias_init,
        use_bias=use_bias,
        dtype=dtype,
        rngs=rngs,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardized(hidden_states: jax.Array, mean: Callable[[jax.Array], jax.Array], epsilon: float) -> jax.Array:
    """`hidden_states` less their mean, over their standard deviation, in float32.

    Two passes, as E[x²] − E[x]² cancels when a mean is large beside its spread. The gradient is written out: for
    autodiff that of the mean waits for that of the variance, one pass more over images in float32.

    Args:
        hidden_states: any shape and dtype.
        mean: takes means over what is normalized together, of a shape that broadcasts.
        epsilon: is added to the variance.
    """
    return _standardize(hidden_states, mean, epsilon)[0]


def _standardize(hidden_states, mean, epsilon):
    x = hidden_states.astype(jnp.float32)
    center = mean(x)
    rate = jax.lax.rsqrt(mean(jnp.square(x - center)) + epsilon)
    return (x - center) * rate, (hidden_states, center, rate)


def _standardize_gradient(mean, epsilon, kept, gradient):
    hidden_states, center, rate = kept
    x = (hidden_states.astype(jnp.float32) - center) * rate
    return (((gradient - mean(gradient) - x * mean(gradient * x)) * rate).astype(hidden_states.dtype),)


standardized.defvjp(_standardize, _standardize_gradient)


class GroupNorm(nnx.GroupNorm):
    """Group normalization (arXiv 1803.08494) of `(B, H, W, C)` with float32 statistics.

    Same parameters and values as `nnx.GroupNorm`, which reduces over groups of a few neighbouring channels at
    once; XLA's CPU compiler makes of that a scalar loop, seven times slower forward and backward than sums
    over the pixels of each channel with the channels of a group added up last.
    """

    def __call__(
        self,
        hidden_states: jax.Array,
        activation: Callable[[jax.Array], jax.Array] = lambda x: x,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Returns `activation` of the normalized `(B, H, W, C)` in the compute dtype, rounded once."""
        x = standardized(hidden_states, functools.partial(_group_mean, self.num_groups), self.epsilon)
        assert self.scale is not None
        assert self.bias is not None
        return activation(x * self.scale[...] + self.bias[...]).astype(self.dtype)


def _group_mean(num_groups: int, x: jax.Array) -> jax.Array:
    """The mean over the pixels and channels of each group, `(B, H, W, C) -> (B, 1, 1, C)`."""
    groups = x.mean(axis=(1, 2)).reshape(len(x), num_groups, -1).mean(axis=-1)
    return jnp.repeat(groups, x.shape[-1] // num_groups, axis=-1)[:, None, None, :]


def group_norm(channels: int, num_groups: int, *, epsilon: float, dtype: DTypeLike, rngs: nnx.Rngs) -> GroupNorm:
    """A `GroupNorm` over `num_groups` groups of neighbouring channels."""
    return GroupNorm(channels, num_groups, epsilon=epsilon, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Layer normalization (arXiv 1607.06450) of `(..., C)` with float32 statistics."""

    def __call__(self, hidden_states: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Returns the normalized `(..., C)` in the compute dtype, rounded once."""
        x = standardized(hidden_states, _feature_mean, self.epsilon)
        assert self.scale is not None
        assert self.bias is not None
        return (x * self.scale[...] + self.bias[...]).astype(self.dtype)


def _feature_mean(x: jax.Array) -> jax.Array:
    return x.mean(axis=-1, keepdims=True)


def layer_norm(features: int, *, epsilon: float = 1e-5, dtype: DTypeLike, rngs: nnx.Rngs) -> LayerNorm:
    """A `LayerNorm` over the last axis."""
    return LayerNorm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)


def silu(hidden_states: jax.Array) -> jax.Array:
    """`x · sigmoid(x)` (arXiv 1702.03118), computed in float32 and rounded once."""
    return nnx.silu(hidden_states.astype(jnp.float32)).astype(hidden_states.dtype)


def gelu(hidden_states: jax.Array, *, approximate: bool = False) -> jax.Array:
    """The Gaussian error linear unit (arXiv 1606.08415), computed in float32 and rounded once.

    Args:
        hidden_states: any shape.
        approximate: take the tanh formula of the paper.
    """
    return nnx.gelu(hidden_states.astype(jnp.float32), approximate=approximate).astype(hidden_states.dtype)


class Identity(nnx.Module):
    """Holds the place of a layer without parameters, so that the indices after it are diffusers'."""

    def __call__(self, hidden_states: jax.Array, *_: jax.Array | None) -> jax.Array:
        """Returns `hidden_states` as it is."""
        return hidden_states


def timestep_embedding(timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """Sinusoidal features of the timesteps (arXiv 2006.11239): `(B,) -> (B, dim)`, float32."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, dim % 2)))


class Mlp(nnx.Module):
    """Two dense layers with SiLU between them, as diffusers' `TimestepEmbedding`."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear_1 = linear(in_features, out_features, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(out_features, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """`(..., in_features) -> (..., out_features)`."""
        return self.linear_2(silu(self.linear_1(features)))


class ResnetBlock2D(nnx.Module):
    """Two normalized convolutions beside a shortcut, shifted (and scaled) by the time embedding.

    `time_scale_shift` is "default" (the embedding is added before the second norm) or "scale_shift"
    (it scales and shifts after it, arXiv 2102.09672); without `temb_channels` there is no embedding.
    """

    compute = PORTABLE

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None = None,
        groups: int,
        epsilon: float,
        time_scale_shift: str = "default",
        output_scale_factor: float = 1.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = time_scale_shift == "scale_shift"
        self.output_scale_factor = output_scale_factor
        self.norm1 = group_norm(in_channels, groups, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        self.time_emb_proj = (
            linear(temb_channels, out_channels * (1 + self.scale_shift), dtype=dtype, rngs=rngs)
            if temb_channels
            else None
        )
        self.norm2 = group_norm(out_channels, groups, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, dtype=dtype, rngs=rngs)
        self.conv_shortcut = (
            conv(in_channels, out_channels, 1, dtype=dtype, rngs=rngs) if in_channels != out_channels else None
        )

    @rematerialized
    def __call__(
        self, hidden_states: jax.Array, temb: jax.Array | None = None, skip: jax.Array | None = None
    ) -> jax.Array:
        """`(B, H, W, in)` and `(B, temb_channels)` to `(B, H, W, out)`; the last of `in` may come as `skip`."""
        if skip is not None:  # joined in here, so that rematerialization need not keep both halves twice
            hidden_states = jnp.concatenate([hidden_states, skip], axis=-1)
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.conv1(self.norm1(hidden_states, nnx.silu))
        if self.time_emb_proj is None:
            hidden_states = self.norm2(hidden_states, nnx.silu)
        else:
            assert temb is not None
            shift = self.time_emb_proj(silu(temb))[:, None, None, :].astype(jnp.float32)
            if self.scale_shift:
                scale, shift = jnp.split(shift, 2, axis=-1)
                hidden_states = self.norm2(hidden_states, lambda x: nnx.silu(x * (1 + scale) + shift))
            else:
                hidden_states = self.norm2(hidden_states + shift, nnx.silu)
        hidden_states = self.conv2(hidden_states)
        return (shortcut + hidden_states) / self.output_scale_factor


class Downsample2D(nnx.Module):
    """A convolution of stride 2; padding 0 stands for diffusers' one row and column at the far edges."""

    def __init__(self, channels: int, *, padding: int, dtype: DTypeLike, rngs: nnx.Rngs):
        edges = (padding, padding) if padding else (0, 1)
        self.conv = conv(channels, channels, stride=2, padding=edges, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C)` (rounded down with padding 0)."""
        return self.conv(hidden_states)


class Upsample2D(nnx.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """`(B, H, W, C) -> (B, 2H, 2W, C)`, or `size` where an odd size was halved on the way down.

        Raises:
            UserError: `size` is more than double, as after an unpadded halving of an odd size.
        """
        batch, height, width, channels = hidden_states.shape
        # A broadcast: its gradient is a plain sum, where that of `jax.image.resize` is a scatter.
        doubled = jnp.broadcast_to(
            hidden_states[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
        ).reshape(batch, 2 * height, 2 * width, channels)
        if size is not None:
            if size[0] > 2 * height or size[1] > 2 * width:
                raise UserError(
                    f"latent size {size} cannot be halved and doubled again; use even sizes or downsample_padding 1"
                )
            # Nearest-neighbour from n to 2n-1 is the doubled image less its last row.
            doubled = doubled[:, : size[0], : size[1]]
        return self.conv(doubled)
