"""Inception v3 (arXiv 1512.00567) as the Fréchet Inception distance uses it: the network of TensorFlow, December 2015.

Names are torchvision's. Three things differ from torchvision's own network: the average pools leave padding out of
their means, the last block's pool takes maxima, and the classifier and the auxiliary head are left away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
from jaxcxr.models.features.batch_norm import BatchNorm

Kernel = tuple[int, int, int]
"""Output channels, height and width of a convolution."""

Branches = Mapping[str, Sequence[Sequence[Kernel]]]
"""A branch's steps by its name; a step is one convolution, or two of the same input whose outputs are both kept."""

_PADDING = {1: "SAME", 2: "VALID"}  # of a block, by stride
_SPLIT = ((384, 1, 3), (384, 3, 1))


class BasicConv2d(nnx.Module):
    """A convolution without bias, batch normalization and ReLU."""

    def __init__(self, in_channels: int, kernel: Kernel, *, stride: int = 1, padding: str = "SAME", rngs: nnx.Rngs):
        out_channels, *size = kernel
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            size,
            strides=stride,
            padding=padding,
            use_bias=False,
            kernel_init=initial.torch_kernel(),
            rngs=rngs,
        )
        self.bn = BatchNorm(out_channels, epsilon=1e-3, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in) -> (B, H', W', out)`, float32."""
        return nnx.relu(self.bn(self.conv(hidden_states)))


class Mixed(nnx.Module):
    """Branches of one input side by side, joined by channel: those given, and last a 3×3 pool.

    A branch of one step has the branch's name; the steps of a longer one are numbered from 1, and two convolutions of
    one step are told apart by a and b. The pool is followed by a 1×1 convolution `branch_pool` where
    `pool_channels` says its width. With `stride` 2 the last step of each branch and the pool halve the image
    without padding.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Branches,
        *,
        pool_channels: int | None = None,
        max_pool: bool = False,
        stride: int = 1,
        rngs: nnx.Rngs,
    ):
        self.max_pool, self.stride = max_pool, stride
        named: list[tuple[tuple[str, ...], ...]] = []
        for branch, steps in branches.items():
            named.append(_names(branch, steps))
            width = in_channels
            for step, (names, kernels) in enumerate(zip(named[-1], steps, strict=True), 1):
                pace = stride if step == len(steps) else 1
                for name, kernel in zip(names, kernels, strict=True):
                    setattr(self, name, BasicConv2d(width, kernel, stride=pace, padding=_PADDING[pace], rngs=rngs))
                width = kernels[0][0]
        self.branches = tuple(named)
        self.branch_pool = BasicConv2d(in_channels, (pool_channels, 1, 1), rngs=rngs) if pool_channels else None

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in_channels) -> (B, H', W', out)`, float32."""
        joined = []
        for branch in self.branches:
            ends = [hidden_states]
            for names in branch:
                ends = [getattr(self, name)(ends[0]) for name in names]
            joined += ends
        pooled = self._pool(hidden_states)
        joined.append(pooled if self.branch_pool is None else self.branch_pool(pooled))
        return jnp.concatenate(joined, axis=-1)

    def _pool(self, hidden_states: jax.Array) -> jax.Array:
        window, strides, padding = (3, 3), (self.stride, self.stride), _PADDING[self.stride]
        if self.max_pool:
            return nnx.max_pool(hidden_states, window, strides, padding)
        return nnx.avg_pool(hidden_states, window, strides, padding, count_include_pad=False)


def _names(branch: str, steps: Sequence[Sequence[Kernel]]) -> tuple[tuple[str, ...], ...]:
    if len(steps) == 1:
        return ((branch,),)
    letters = [("a", "b") if len(kernels) == 2 else ("",) for kernels in steps]
    return tuple(tuple(f"{branch}_{i}{letter}" for letter in each) for i, each in enumerate(letters, 1))


def _chain(*kernels: Kernel) -> list[tuple[Kernel]]:
    return [(kernel,) for kernel in kernels]


def _block_a() -> Branches:
    return {
        "branch1x1": _chain((64, 1, 1)),
        "branch5x5": _chain((48, 1, 1), (64, 5, 5)),
        "branch3x3dbl": _chain((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    }


def _block_b() -> Branches:
    return {"branch3x3": _chain((384, 3, 3)), "branch3x3dbl": _chain((64, 1, 1), (96, 3, 3), (96, 3, 3))}


def _block_c(inner: int) -> Branches:
    wide, high = (inner, 1, 7), (inner, 7, 1)
    return {
        "branch1x1": _chain((192, 1, 1)),
        "branch7x7": _chain((inner, 1, 1), wide, (192, 7, 1)),
        "branch7x7dbl": _chain((inner, 1, 1), high, wide, high, (192, 1, 7)),
    }


def _block_d() -> Branches:
    return {
        "branch3x3": _chain((192, 1, 1), (320, 3, 3)),
        "branch7x7x3": _chain((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
    }


def _block_e() -> Branches:
    return {
        "branch1x1": _chain((320, 1, 1)),
        "branch3x3": [*_chain((384, 1, 1)), _SPLIT],
        "branch3x3dbl": [*_chain((448, 1, 1), (384, 3, 3)), _SPLIT],
    }


class InceptionV3(nnx.Module):
    """Inception v3 up to the mean over its last image of features."""

    def __init__(self, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = BasicConv2d(3, (32, 3, 3), stride=2, padding="VALID", rngs=rngs)
        self.Conv2d_2a_3x3 = BasicConv2d(32, (32, 3, 3), padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = BasicConv2d(32, (64, 3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = BasicConv2d(64, (80, 1, 1), rngs=rngs)
        self.Conv2d_4a_3x3 = BasicConv2d(80, (192, 3, 3), padding="VALID", rngs=rngs)
        self.Mixed_5b = Mixed(192, _block_a(), pool_channels=32, rngs=rngs)
        self.Mixed_5c = Mixed(256, _block_a(), pool_channels=64, rngs=rngs)
        self.Mixed_5d = Mixed(288, _block_a(), pool_channels=64, rngs=rngs)
        self.Mixed_6a = Mixed(288, _block_b(), max_pool=True, stride=2, rngs=rngs)
        self.Mixed_6b = Mixed(768, _block_c(128), pool_channels=192, rngs=rngs)
        self.Mixed_6c = Mixed(768, _block_c(160), pool_channels=192, rngs=rngs)
        self.Mixed_6d = Mixed(768, _block_c(160), pool_channels=192, rngs=rngs)
        self.Mixed_6e = Mixed(768, _block_c(192), pool_channels=192, rngs=rngs)
        self.Mixed_7a = Mixed(768, _block_d(), max_pool=True, stride=2, rngs=rngs)
        self.Mixed_7b = Mixed(1280, _block_e(), pool_channels=192, rngs=rngs)
        self.Mixed_7c = Mixed(2048, _block_e(), pool_channels=192, max_pool=True, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """RGB `(B, 299, 299, 3)`, of about −1 to 1, to `(B, 2048)`, float32."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = nnx.max_pool(x, (3, 3), (2, 2))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = nnx.max_pool(x, (3, 3), (2, 2))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(axis=(1, 2))
