"""EfficientNet-Lite0 (arXiv 1905.11946), the variant without squeeze-and-excitation and with ReLU6."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
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


def _conv(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution without bias. Its padding is TensorFlow's, which for stride 2 has more at the far edges."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding="SAME",
        use_bias=False,
        rngs=rngs,
    )


class DepthwiseConv(nnx.Module):
    """A convolution of each channel by itself, without bias, padded as `_conv`.

    On CPUs it is a sum of shifted images, which is 5 to 20 times as fast as XLA's own there.
    """

    def __init__(self, channels: int, kernel_size: int, *, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.kernel = nnx.Param(initial.torch_kernel()(rngs.params(), (kernel_size, kernel_size, 1, channels)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, ⌈H/stride⌉, ⌈W/stride⌉, C)`."""
        return jax.lax.platform_dependent(inputs, self.kernel[...], cpu=self._shifted, default=self._grouped)

    def _grouped(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(
            inputs, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=inputs.shape[-1]
        )

    def _shifted(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        size, stride = len(kernel), self.stride
        outputs = [-(-side // stride) for side in inputs.shape[1:3]]
        missing = [
            max((out - 1) * stride + size - side, 0) for out, side in zip(outputs, inputs.shape[1:3], strict=True)
        ]
        padded = jnp.pad(inputs, ((0, 0), *((each // 2, each - each // 2) for each in missing), (0, 0)))
        rows, columns = ((out - 1) * stride + 1 for out in outputs)
        parts = (
            padded[:, y : y + rows : stride, x : x + columns : stride] * kernel[y, x, 0]
            for y in range(size)
            for x in range(size)
        )
        return functools.reduce(jnp.add, parts)


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
        self._depthwise_conv = DepthwiseConv(inner, kernel_size, stride=stride, rngs=rngs)
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
