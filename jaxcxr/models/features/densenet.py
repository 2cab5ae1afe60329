"""DenseNet (Huang et al. 2017, arXiv 1608.06993) with the parameter names of torchvision and torchxrayvision."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.layers import linear

GROWTH_RATE, BN_SIZE, NUM_INIT_FEATURES = 32, 4, 64
"""Channels that a layer adds; how many times as many its first convolution makes; channels of the stem."""
BLOCK_CONFIG = (6, 12, 24, 16)
"""Layers of each block of DenseNet-121."""
WIDTH = 1024
"""Features of DenseNet-121."""


def _conv(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution without bias; its kernel starts as N(0, 2 / fan_in), the paper's (arXiv 1502.01852)."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((kernel_size // 2, kernel_size // 2),) * 2,
        use_bias=False,
        kernel_init=initial.normal(math.sqrt(2 / (kernel_size**2 * in_channels))),
        rngs=rngs,
    )


class DenseLayer(nnx.Module):
    """Two normalized convolutions, which make the channels that the layer adds."""

    def __init__(self, in_channels: int, *, rngs: nnx.Rngs):
        inner = BN_SIZE * GROWTH_RATE
        self.norm1 = BatchNorm(in_channels, rngs=rngs)
        self.conv1 = _conv(in_channels, inner, rngs=rngs)
        self.norm2 = BatchNorm(inner, rngs=rngs)
        self.conv2 = _conv(inner, GROWTH_RATE, 3, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, H, W, 32)`."""
        hidden_states = self.conv1(nnx.relu(self.norm1(hidden_states)))
        return self.conv2(nnx.relu(self.norm2(hidden_states)))


class DenseBlock(nnx.Module):
    """Layers `denselayer1`, `denselayer2` and so on, each of which sees the channels of all before it."""

    def __init__(self, in_channels: int, layers: int, *, rngs: nnx.Rngs):
        self.layers = layers
        for index in range(layers):
            setattr(self, f"denselayer{index + 1}", DenseLayer(in_channels + index * GROWTH_RATE, rngs=rngs))

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, H, W, C + 32 · layers)`."""
        for index in range(self.layers):
            added = getattr(self, f"denselayer{index + 1}")(hidden_states)
            hidden_states = jnp.concatenate([hidden_states, added], axis=-1)
        return hidden_states


class Transition(nnx.Module):
    """Half of the channels and half of the pixels a side."""

    def __init__(self, in_channels: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(in_channels, rngs=rngs)
        self.conv = _conv(in_channels, in_channels // 2, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, ⌊H/2⌋, ⌊W/2⌋, C/2)`."""
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(hidden_states))), (2, 2), strides=(2, 2))


class Features(nnx.Module):
    """The stem, the blocks with a transition between each two, and the last norm."""

    def __init__(self, in_channels: int, block_config: tuple[int, ...], *, rngs: nnx.Rngs):
        self.blocks, channels = len(block_config), NUM_INIT_FEATURES
        self.conv0 = _conv(in_channels, channels, 7, stride=2, rngs=rngs)
        self.norm0 = BatchNorm(channels, rngs=rngs)
        for number, layers in enumerate(block_config, start=1):
            setattr(self, f"denseblock{number}", DenseBlock(channels, layers, rngs=rngs))
            channels += layers * GROWTH_RATE
            if number < self.blocks:
                setattr(self, f"transition{number}", Transition(channels, rngs=rngs))
                channels //= 2
        self.norm5 = BatchNorm(channels, rngs=rngs)
        self.channels = channels

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels)` to the normalized `(B, H/32, W/32, channels)`."""
        hidden_states = nnx.relu(self.norm0(self.conv0(images)))
        hidden_states = nnx.max_pool(hidden_states, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for number in range(1, self.blocks + 1):
            hidden_states = getattr(self, f"denseblock{number}")(hidden_states)
            if number < self.blocks:
                hidden_states = getattr(self, f"transition{number}")(hidden_states)
        return self.norm5(hidden_states)


class DenseNet(nnx.Module):
    """The network up to the mean over pixels and, with `classes`, a linear classifier of that.

    Args:
      in_channels: of the images.
      classes: outputs of the classifier; with 0 there is none.
      block_config: layers of each block; the usual ones are DenseNet-121's.
      rngs: its `params` stream draws the initial parameters.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 0,
        block_config: tuple[int, ...] = BLOCK_CONFIG,
        *,
        rngs: nnx.Rngs,
    ):
        self.features = Features(in_channels, block_config, rngs=rngs)
        width = self.features.channels
        self.classifier = linear(width, classes, dtype=jnp.float32, rngs=rngs) if classes else None

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels)` float32 to features, `(B, 1024)` float32, none negative."""
        return jnp.mean(nnx.relu(self.features(images)), axis=(1, 2))

    def logits(self, features: jax.Array) -> jax.Array:
        """Features `(B, 1024)` to the classes' logits `(B, classes)`.

        Raises:
          ValueError: the network was made without classes.
        """
        if self.classifier is None:
            raise ValueError("this DenseNet has no classifier: it was made with classes=0")
        return self.classifier(features)
