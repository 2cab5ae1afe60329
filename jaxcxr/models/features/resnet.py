"""ResNet (He et al. 2015, arXiv 1512.03385) with torchvision's parameter names.

As torchvision's, a bottleneck of stride 2 has it in the convolution of size 3, not in the first of size 1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.layers import linear

_PLANES = (64, 128, 256, 512)


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution without bias; its kernel starts as N(0, 2 / fan_out) (arXiv 1502.01852)."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((kernel_size // 2, kernel_size // 2),) * 2,
        use_bias=False,
        kernel_init=initial.normal(math.sqrt(2 / (kernel_size**2 * out_channels))),
        rngs=rngs,
    )


def _downsample(in_channels: int, out_channels: int, stride: int, rngs: nnx.Rngs) -> nnx.List | None:
    """What the shortcut needs to have the block's shape: a convolution of size 1 and a norm, or nothing."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nnx.List([_conv(in_channels, out_channels, 1, stride=stride, rngs=rngs), BatchNorm(out_channels, rngs=rngs)])


def _shortcut(downsample: nnx.List | None, inputs: jax.Array) -> jax.Array:
    return inputs if downsample is None else downsample[1](downsample[0](inputs))


class BasicBlock(nnx.Module):
    """Two normalized convolutions of size 3 beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = _conv(in_channels, planes, 3, stride=stride, rngs=rngs)
        self.bn1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = _conv(planes, planes, 3, rngs=rngs)
        self.bn2 = BatchNorm(planes, rngs=rngs)
        self.downsample = _downsample(in_channels, planes, stride, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, ⌈H/stride⌉, ⌈W/stride⌉, planes)`."""
        hidden_states = nnx.relu(self.bn1(self.conv1(inputs)))
        hidden_states = self.bn2(self.conv2(hidden_states))
        return nnx.relu(hidden_states + _shortcut(self.downsample, inputs))


class Bottleneck(nnx.Module):
    """A normalized convolution of size 3 between two of size 1, beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, *, rngs: nnx.Rngs):
        out_channels = planes * self.expansion
        self.conv1 = _conv(in_channels, planes, 1, rngs=rngs)
        self.bn1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = _conv(planes, planes, 3, stride=stride, rngs=rngs)
        self.bn2 = BatchNorm(planes, rngs=rngs)
        self.conv3 = _conv(planes, out_channels, 1, rngs=rngs)
        self.bn3 = BatchNorm(out_channels, rngs=rngs)
        self.downsample = _downsample(in_channels, out_channels, stride, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 · planes)`."""
        hidden_states = nnx.relu(self.bn1(self.conv1(inputs)))
        hidden_states = nnx.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.bn3(self.conv3(hidden_states))
        return nnx.relu(hidden_states + _shortcut(self.downsample, inputs))


class ResNet(nnx.Module):
    """The network up to the mean over pixels and, with `classes`, a linear classifier of that.

    Args:
      block: what the four layers are made of.
      layers: blocks of each layer.
      in_channels: of the images.
      classes: outputs of the classifier; with 0 there is none.
      rngs: its `params` stream draws the initial parameters.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, int, int, int],
        in_channels: int = 3,
        classes: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        channels = _PLANES[0]
        self.conv1 = _conv(in_channels, channels, 7, stride=2, rngs=rngs)
        self.bn1 = BatchNorm(channels, rngs=rngs)
        for number, (planes, blocks) in enumerate(zip(_PLANES, layers, strict=True), start=1):
            layer = []
            for index in range(blocks):
                layer.append(block(channels, planes, 2 if number > 1 and index == 0 else 1, rngs=rngs))
                channels = planes * block.expansion
            setattr(self, f"layer{number}", nnx.List(layer))
        self.fc = linear(channels, classes, dtype=jnp.float32, rngs=rngs) if classes else None

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels)` float32 to features, `(B, 512 · expansion)` float32, none negative."""
        return jnp.mean(self.last_map(images), axis=(1, 2))

    def last_map(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels)` to `(B, ⌈H/32⌉, ⌈W/32⌉, 512 · expansion)`; its mean is the features."""
        hidden_states = nnx.relu(self.bn1(self.conv1(images)))
        hidden_states = nnx.max_pool(hidden_states, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for number in range(1, len(_PLANES) + 1):
            for block in getattr(self, f"layer{number}"):
                hidden_states = block(hidden_states)
        return hidden_states

    def logits(self, features: jax.Array) -> jax.Array:
        """Features `(B, 512 · expansion)` to the classes' logits `(B, classes)`.

        Raises:
          ValueError: the network was made without classes.
        """
        if self.fc is None:
            raise ValueError("this ResNet has no classifier: it was made with classes=0")
        return self.fc(features)


def resnet18(in_channels: int = 3, classes: int = 0, *, rngs: nnx.Rngs) -> ResNet:
    """ResNet-18, whose features are 512."""
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, classes, rngs=rngs)


def resnet50(in_channels: int = 3, classes: int = 0, *, rngs: nnx.Rngs) -> ResNet:
    """ResNet-50, whose features are 2048."""
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, classes, rngs=rngs)
