"""LPIPS, a learned distance of two images (Zhang et al. 2018, arXiv 1801.03924), version 0.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models.config import LpipsConfig
from jaxcxr.models.layers import Identity, conv

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What is taken from each channel of an image in [-1, 1], and what the rest is divided by."""
EPSILON = 1e-10
Layer = tuple[int, int, int, int] | str | int
"""(channels, kernel, stride, padding) of a convolution, "relu", or the window of a pool."""


class Relu(nnx.Module):
    """max(x, 0)."""

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns an array of the same shape."""
        return nnx.relu(hidden_states)


class MaxPool(nnx.Module):
    """The largest value of each window, every second one, without padding."""

    def __init__(self, window: int):
        self.window = window

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, ⌊(H − window) / 2⌋ + 1, …, C)`."""
        return nnx.max_pool(hidden_states, (self.window, self.window), strides=(2, 2))


@dataclasses.dataclass(frozen=True)
class Net:
    """A network whose features are compared.

    Attributes:
      layers: torchvision's `features`, one by one.
      compared: the places in `layers` after which features are compared.
      least: the shorter side of an image has so many pixels or more.
    """

    layers: tuple[Layer, ...]
    compared: tuple[int, ...]
    least: int


def _vgg16() -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for width, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [*((width, 3, 1, 1), "relu") * times, 2]
    return tuple(layers[:-1])


_ALEX = (
    *((64, 11, 4, 2), "relu", 3),
    *((192, 5, 1, 2), "relu", 3),
    *((384, 3, 1, 1), "relu"),
    *((256, 3, 1, 1), "relu"),
    *((256, 3, 1, 1), "relu"),
)
NETS: Mapping[str, Net] = {
    "alex": Net(_ALEX, (1, 4, 7, 9, 11), 31),
    "vgg": Net(_vgg16(), (3, 8, 15, 22, 29), 16),
}
"""By the names of the package lpips."""


class Head(nnx.Module):
    """Weights of the channels of one layer; dropout, of which nothing is left after training, is at 0."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.model = nnx.List([Identity(), nnx.Conv(channels, 1, (1, 1), use_bias=False, rngs=rngs)])

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, C) -> (B, H, W, 1)`."""
        return self.model[1](hidden_states)


class Lpips(nnx.Module):
    """The distance of two images: of their features, normalized at each pixel, weighed by channel, averaged.

    Parameters have the names of torchvision (`features.0`) and of the package lpips (`lin0.model.1`).

    Args:
      net: a key of `NETS`.
      calibrated: whether it has the weights of channels.
      rngs: its `params` stream draws the initial parameters.

    Raises:
      UserError: there is no such net.
    """

    def __init__(self, net: str, *, calibrated: bool = True, rngs: nnx.Rngs):
        if net not in NETS:
            raise UserError(f"LPIPS net {net!r:.100}: is not known; give {' or '.join(NETS)}")
        self.net, channels = net, 3
        self.features: Any = nnx.List()
        for place, layer in enumerate(NETS[net].layers):
            if isinstance(layer, tuple):
                before, (channels, kernel, stride, padding) = channels, layer
                sides = (padding, padding)
                self.features.append(
                    conv(before, channels, kernel, stride=stride, padding=sides, dtype=jnp.float32, rngs=rngs)
                )
            else:
                self.features.append(MaxPool(layer) if isinstance(layer, int) else Relu())
            if calibrated and place in NETS[net].compared:
                setattr(self, f"lin{NETS[net].compared.index(place)}", Head(channels, rngs=rngs))

    def __call__(self, first: jax.Array, second: jax.Array, *, calibrated: bool = True) -> jax.Array:
        """Distances of pairs, float32 (B,), 0 for equal images.

        Args:
          first: images in [−1, 1], (B, H, W, 1) or (B, H, W, 3); a gray is repeated to three channels.
          second: images of the same shape.
          calibrated: whether channels are weighed; they all count 1 otherwise.

        Raises:
          UserError: the shapes differ or are others, or a side is too small for the pools.
        """
        if first.shape != second.shape or first.ndim != 4 or first.shape[-1] not in (1, 3):
            raise UserError(
                f"images: are of shapes {first.shape} and {second.shape}; give (B, H, W, 1) or (B, H, W, 3), twice"
            )
        if min(first.shape[1:3]) < (least := NETS[self.net].least):
            raise UserError(
                f"images: are of {first.shape[1]} x {first.shape[2]} pixels; LPIPS ({self.net}) needs {least} or more a"
                " side"
            )
        # In full float32 also where a device would round the factors of a convolution to fewer bits.
        with jax.default_matmul_precision("highest"):
            distances = jnp.zeros(len(first), jnp.float32)
            for index, (a, b) in enumerate(zip(self._compared(first), self._compared(second), strict=True)):
                apart = jnp.square(_normalized(a) - _normalized(b))
                weighed = getattr(self, f"lin{index}")(apart) if calibrated else apart.sum(axis=-1, keepdims=True)
                distances += weighed.mean(axis=(1, 2, 3))
            return distances

    def _compared(self, images: jax.Array) -> list[jax.Array]:
        """The features that are compared, from the finest."""
        hidden_states = (images.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
        found = []
        for place, layer in enumerate(self.features):
            hidden_states = layer(hidden_states)
            if place in NETS[self.net].compared:
                found.append(hidden_states)
        return found


def _normalized(features: jax.Array) -> jax.Array:
    """Features of unit length at each pixel; zeros stay."""
    squared = jnp.square(features).sum(axis=-1, keepdims=True)
    # Where no feature is active a square root has no slope: the gradient of the distance is 0 there, as its limit is.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return features / (length + EPSILON)


class LpipsModel(Lpips):
    """The same as a network of a run, described by a `LpipsConfig`; it computes in float32 whatever `dtype` is."""

    def __init__(self, config: Mapping[str, Any] | LpipsConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = LpipsConfig.from_dict(config)
        super().__init__(self.config.net, calibrated=self.config.calibrated, rngs=rngs)
