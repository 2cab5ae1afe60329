"""A small convolutional network, quick on CPUs, for images of 64 to 128 pixels.

Resolution is folded into channels, as strided convolutions and pooling have slow gradients there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models.layers import GroupNorm, conv, group_norm, linear

PATCH, WIDTHS, GROUPS = 4, (32, 64, 96), 8
"""Pixels of a side of the first patches; channels at each resolution, of which each is half of the one before."""
MULTIPLE = PATCH * 2 ** (len(WIDTHS) - 1)
"""What divides the sides of its images."""


def _norm(channels: int, rngs: nnx.Rngs) -> GroupNorm:
    return group_norm(channels, GROUPS, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)


class Stage(nnx.Module):
    """Patches to channels, and two residual convolutions."""

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, rngs: nnx.Rngs):
        self.patch = patch
        self.conv_in = conv(in_channels * patch**2, out_channels, dtype=jnp.float32, rngs=rngs)
        self.norm1, self.norm2 = _norm(out_channels, rngs), _norm(out_channels, rngs)
        self.conv1 = conv(out_channels, out_channels, dtype=jnp.float32, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, dtype=jnp.float32, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, H/patch, W/patch, out_channels)`."""
        hidden_states = self.conv_in(_folded(hidden_states, self.patch))
        hidden_states = hidden_states + self.conv1(self.norm1(hidden_states, nnx.silu))
        return hidden_states + self.conv2(self.norm2(hidden_states, nnx.silu))


class SmallNet(nnx.Module):
    """Three stages, and the mean and the maximum over pixels.

    Args:
      in_channels: of the images.
      classes: outputs of the classifier; with 0 there is none.
      rngs: its `params` stream draws the initial parameters.
    """

    def __init__(self, in_channels: int = 1, classes: int = 0, *, rngs: nnx.Rngs):
        self.stage1 = Stage(in_channels, WIDTHS[0], PATCH, rngs=rngs)
        self.stage2 = Stage(WIDTHS[0], WIDTHS[1], 2, rngs=rngs)
        self.stage3 = Stage(WIDTHS[1], WIDTHS[2], 2, rngs=rngs)
        self.norm = _norm(WIDTHS[2], rngs)
        self.fc = linear(2 * WIDTHS[2], classes, dtype=jnp.float32, rngs=rngs) if classes else None

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels)`, sides multiples of 16, to features `(B, 192)`."""
        hidden_states = self.norm(self.stage3(self.stage2(self.stage1(images))), nnx.silu)
        return jnp.concatenate([hidden_states.mean((1, 2)), hidden_states.max((1, 2))], axis=-1)

    def logits(self, features: jax.Array) -> jax.Array:
        """Features `(B, 192)` to the classes' logits `(B, classes)`.

        Raises:
          ValueError: the network was made without classes.
        """
        if self.fc is None:
            raise ValueError("this network has no classifier: it was made with classes=0")
        return self.fc(features)


def _folded(images: jax.Array, patch: int) -> jax.Array:
    """Patches of pixels to channels: `(B, H, W, C) -> (B, H/patch, W/patch, patch² C)`."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // patch, width // patch, -1)
