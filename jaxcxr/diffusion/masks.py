"""Random masks of what is to be painted anew, drawn on the device. Each example's is of its own key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Mask = Callable[[jax.Array, jax.Array], jax.Array]
"""(a key, coordinates of pixels (S, S, 2) as (down, right) in [0, 1]) -> bool (S, S)."""

_STROKES, _POINTS = 3, 5


def box(key: jax.Array, at: jax.Array) -> jax.Array:
    """A rectangle with sides from a fifth to seven tenths of the image's."""
    sides, corner = jax.random.split(key)
    size = jax.random.uniform(sides, (2,), minval=0.2, maxval=0.7)
    first = jax.random.uniform(corner, (2,)) * (1 - size)
    return ((at >= first) & (at <= first + size)).all(axis=-1)


def strokes(key: jax.Array, at: jax.Array) -> jax.Array:
    """Up to three broad lines of four segments each, as a brush makes them."""
    places, widths, count = jax.random.split(key, 3)
    points = jax.random.uniform(places, (_STROKES, _POINTS, 2))
    radius = jax.random.uniform(widths, (_STROKES,), minval=0.03, maxval=0.1)
    used = jnp.arange(_STROKES) <= jax.random.randint(count, (), 0, _STROKES)
    start, along = points[:, :-1], points[:, 1:] - points[:, :-1]
    offset = at[None, None] - start[:, :, None, None]
    share = (offset * along[:, :, None, None]).sum(-1) / jnp.maximum((along**2).sum(-1), 1e-6)[..., None, None]
    nearest = start[:, :, None, None] + jnp.clip(share, 0, 1)[..., None] * along[:, :, None, None]
    distance = jnp.sqrt(((at - nearest) ** 2).sum(-1)).min(axis=1)
    return ((distance <= radius[:, None, None]) & used[:, None, None]).any(axis=0)


def lungs(key: jax.Array, at: jax.Array) -> jax.Array:
    """The left field, the right one or both: ellipses where those of a frontal radiograph lie."""
    which, places, sizes = jax.random.split(key, 3)
    centers = jnp.array([[0.47, 0.29], [0.47, 0.71]]) + jax.random.uniform(places, (2, 2), minval=-0.05, maxval=0.05)
    radii = jnp.array([0.34, 0.17]) * jax.random.uniform(sizes, (2, 2), minval=0.8, maxval=1.15)
    there = jax.random.choice(which, jnp.array([[True, False], [False, True], [True, True]]))
    inside = (((at[None] - centers[:, None, None]) / radii[:, None, None]) ** 2).sum(-1) <= 1
    return (inside & there[:, None, None]).any(axis=0)


def whole(key: jax.Array, at: jax.Array) -> jax.Array:
    """All of the image, so that the network still draws from text alone."""
    return jnp.ones(at.shape[:2], bool)


MASKS: dict[str, Mask] = {"box": box, "strokes": strokes, "lungs": lungs, "whole": whole}
"""By name."""


def draw(names: tuple[str, ...], side: int, keys: jax.Array) -> jax.Array:
    """Masks of kinds that are drawn from `names`, float32 (B, side, side, 1), 1 where it is painted anew.

    Args:
      names: of `MASKS`; one that is there twice is drawn twice as often.
      side: in pixels.
      keys: of the examples, (B,).
    """
    middle = (jnp.arange(side) + 0.5) / side
    at = jnp.stack(jnp.meshgrid(middle, middle, indexing="ij"), axis=-1)

    def one(key: jax.Array) -> jax.Array:
        kind, own = jax.random.split(key)
        drawn = jnp.stack([MASKS[name](own, at) for name in names])
        return drawn[jax.random.randint(kind, (), 0, len(names))]

    return jax.vmap(one)(keys).astype(jnp.float32)[..., None]
