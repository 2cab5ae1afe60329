"""EfficientNet-Lite0 (arXiv 1905.11946), the variant without squeeze-and-excitation and with ReLU6."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models.features.batch_norm import BatchNorm

SIZE, WIDTH = 224, 1280
_EPSILON = 1e-3
# Of each stage: blocks, kernel size, stride of the first block, factor of the expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias. Its padding is TensorFlow's, which for stride 2 has more at the far edges."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding="SAME",
        feature_group_count=groups,
        use_bias=False,
        rngs=rngs,
    )


class MBConvBlock(nnx.Module):
    """An inverted bottleneck: a wide depthwise convolution between two of size 1, beside a shortcut where it fits."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, expansion: int, rngs: nnx.Rngs
    ):
        inner = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = _conv(in_channels, inner, rngs=rngs)
            self._bn0 = BatchNorm(inner, epsilon=_EPSILON, rngs=rngs)
        self._depthwise_conv = _conv(inner, inner, kernel_size, stride=stride, groups=inner, rngs=rngs)
        self._bn1 = BatchNorm(inner, epsilon=_EPSILON, rngs=rngs)
        self._project_conv = _conv(inner, out_channels, rngs=rngs)
        self._bn2 = BatchNorm(out_channels, epsilon=_EPSILON, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, ⌈H/stride⌉, ⌈W/stride⌉, out_channels)`."""
        hidden_states = inputs
        if self.expands:
            hidden_states = nnx.relu6(self._bn0(self._expand_conv(hidden_states)))
        hidden_states = nnx.relu6(self._bn1(self._depthwise_conv(hidden_states)))
        hidden_states = self._bn2(self._project_conv(hidden_states))
        return inputs + hidden_states if self.shortcut else hidden_states


class EfficientNetLite0(nnx.Module):
    """The network up to the mean over pixels, with the parameter names of the package efficientnet_lite_pytorch."""

    def __init__(self, *, rngs: nnx.Rngs):
        channels = 32
        self._conv_stem = _conv(3, channels, 3, stride=2, rngs=rngs)
        self._bn0 = BatchNorm(channels, epsilon=_EPSILON, rngs=rngs)
        blocks = []
        for repeats, kernel_size, stride, expansion, width in _STAGES:
            for index in range(repeats):
                first = {"stride": stride if index == 0 else 1, "expansion": expansion}
                blocks.append(MBConvBlock(channels, width, kernel_size=kernel_size, **first, rngs=rngs))
                channels = width
        self._blocks = nnx.List(blocks)
        self._conv_head = _conv(channels, WIDTH, rngs=rngs)
        self._bn1 = BatchNorm(WIDTH, epsilon=_EPSILON, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3)` float32, `(x − 127) / 128` of bytes, to `(B, 1280)` float32, none negative."""
        hidden_states = nnx.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            hidden_states = block(hidden_states)
        return jnp.mean(nnx.relu6(self._bn1(self._conv_head(hidden_states))), axis=(1, 2))
