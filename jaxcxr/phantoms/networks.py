"""The two networks that see findings in a picture. They share nothing but their input and their answers.

Resolution is folded into channels: strided convolutions and pooling have slow gradients on a CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxcxr.models import layers
from jaxcxr.phantoms.truth import CLASSES, GRADES, NAMES

SIDE = 128
"""Pixels of a side of what a network sees."""
SURROUND = 2.5
"""Pixels (σ) that a gray level is compared with."""
MAP = 16
"""Cells of a side of the masks that a network draws beside its answers, from which it learns where to look."""
ANSWERS = len(CLASSES) + 3 * len(GRADES)

_conv = functools.partial(layers.conv, dtype=jnp.float32)
_linear = functools.partial(layers.linear, dtype=jnp.float32)
_norm = functools.partial(layers.group_norm, num_groups=8, epsilon=1e-5, dtype=jnp.float32)


class _Residual(nnx.Module):
    """`x + conv(relu(norm(x)))`."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = _norm(channels, rngs=rngs)
        self.conv = _conv(channels, channels, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return hidden + self.conv(self.norm(hidden, nnx.relu))


class Pooled(nnx.Module):
    """Residual blocks at three resolutions; each half of the picture is pooled by its mean and its maximum."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = _conv(8, 24, rngs=rngs)
        self.down1 = _conv(96, 32, 1, rngs=rngs)
        self.block1 = _Residual(32, rngs=rngs)
        self.down2 = _conv(128, 64, 1, rngs=rngs)
        self.block2a, self.block2b = _Residual(64, rngs=rngs), _Residual(64, rngs=rngs)
        self.maps = _conv(64, len(NAMES), 1, rngs=rngs)
        self.down3 = _conv(256, 96, 1, rngs=rngs)
        self.block3a, self.block3b = _Residual(96, rngs=rngs), _Residual(96, rngs=rngs)
        self.norm = _norm(96, rngs=rngs)
        self.dense = _linear(4 * (96 + len(NAMES)), 128, rngs=rngs)
        self.out = _linear(128, ANSWERS, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 (B, 128, 128) in [0, 1] to logits (B, ANSWERS) and logits of each name's mask (B, 16, 16, 10)."""
        hidden = nnx.relu(self.stem(_fold(_contrasts(images), 2)))
        hidden = self.block1(self.down1(_fold(hidden, 2)))
        hidden = self.block2b(self.block2a(self.down2(_fold(hidden, 2))))
        maps = self.maps(nnx.relu(hidden))
        hidden = self.block3b(self.block3a(self.down3(_fold(hidden, 2))))
        hidden = jnp.concatenate([_halves(self.norm(hidden, nnx.relu)), _halves(maps)], axis=-1)
        return self.out(nnx.relu(self.dense(hidden))), maps


class Placed(nnx.Module):
    """Plain convolutions on larger first patches; every place of the last feature map has weights of its own."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem, self.norm1 = _conv(32, 32, rngs=rngs), _norm(32, rngs=rngs)
        self.down2, self.norm2 = _conv(128, 64, 1, rngs=rngs), _norm(64, rngs=rngs)
        self.conv2a, self.norm3 = _conv(64, 64, rngs=rngs), _norm(64, rngs=rngs)
        self.conv2b, self.norm4 = _conv(64, 64, rngs=rngs), _norm(64, rngs=rngs)
        self.maps = _conv(64, len(NAMES), rngs=rngs)
        self.down3, self.norm5 = _conv(256, 96, 1, rngs=rngs), _norm(96, rngs=rngs)
        self.conv3 = _conv(96 + 4 * len(NAMES), 48, rngs=rngs)
        self.norm6 = _norm(48, rngs=rngs)
        self.dense = _linear(8 * 8 * 48, 96, rngs=rngs)
        self.out = _linear(96, ANSWERS, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 (B, 128, 128) in [0, 1] to logits (B, ANSWERS) and logits of each name's mask (B, 16, 16, 10)."""
        hidden = self.norm1(self.stem(_fold(_contrasts(images), 4)), nnx.silu)
        hidden = self.norm2(self.down2(_fold(hidden, 2)), nnx.silu)
        hidden = self.norm3(self.conv2a(hidden), nnx.silu)
        hidden = self.norm4(self.conv2b(hidden), nnx.silu)
        maps = self.maps(hidden)
        hidden = self.norm5(self.down3(_fold(hidden, 2)), nnx.silu)
        hidden = self.norm6(self.conv3(jnp.concatenate([hidden, _fold(maps, 2)], axis=-1)), nnx.silu)
        return self.out(nnx.silu(self.dense(hidden.reshape(len(hidden), -1)))), maps


NETWORKS = {"pooled": Pooled, "placed": Placed}


def _contrasts(images: jax.Array) -> jax.Array:
    """(B, H, W) in [0, 1] to (B, H, W, 2): gray levels, and their differences from those around, which show lines."""
    at = np.arange(SIDE, dtype=np.float32)
    weights = np.exp(-0.5 * ((at[:, None] - at) / SURROUND) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return jnp.stack([4 * (images - 0.5), 10 * (images - weights @ images @ weights.T)], axis=-1)


def _halves(hidden: jax.Array) -> jax.Array:
    """The mean and the maximum of each half of the picture: (B, H, W, C) to (B, 4 C)."""
    halves = hidden.reshape(len(hidden), hidden.shape[1], 2, hidden.shape[2] // 2, -1)
    return jnp.concatenate([halves.mean((1, 3)), halves.max((1, 3))], axis=-1).reshape(len(hidden), -1)


def _fold(hidden: jax.Array, by: int) -> jax.Array:
    """Blocks of pixels to channels: (B, H, W, C) to (B, H / by, W / by, by² C)."""
    batch, height, width, channels = hidden.shape
    blocks = hidden.reshape(batch, height // by, by, width // by, by, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // by, width // by, -1)
