"""Small changes of training images: turned, moved, lighter or darker, an example's by its own key. None is mirrored.

Off by default. Validation images are never changed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from jaxcxr.errors import UserError
from jaxcxr.methods import method

Batch = Mapping[str, jax.Array]
_APART = 0xA06  # folded into an example's key, so that the loss draws the same numbers with and without


def make_augment(config: Any) -> Callable[[Batch, jax.Array], Batch]:
    """(batch, a key for each example (B,)) -> the batch with its images changed as `config.augment` says.

    Raises:
      UserError: something is asked for, and the run reads no images.
    """
    chosen = {key: value for key, value in config.augment.items() if value}
    if not chosen:
        return lambda batch, keys: batch
    if config.data.cache or "image" not in method(config).reads:
        why = "config.data.cache holds latents" if config.data.cache else f"config.method={config.method!r} reads none"
        raise UserError(f"config.augment.{next(iter(chosen))}: changes images, and {why}; set it to 0")

    def augment(batch: Batch, keys: jax.Array) -> Batch:
        own = jax.vmap(lambda key: jax.random.fold_in(key, _APART))(keys)
        return {
            **batch,
            "image": jax.vmap(lambda image, key: _changed(image, key, config.augment))(batch["image"], own),
        }

    return augment


def _changed(image: jax.Array, key: jax.Array, augment: Any) -> jax.Array:
    """One image, uint8 (H, W, C)."""
    turn, *shift, light = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    height, width = image.shape[:2]
    size = jnp.array([height, width], jnp.float32)
    angle, by = jnp.deg2rad(augment.rotation) * turn, augment.translation * size * jnp.stack(shift)
    moved = jax.vmap(lambda channel: turned(channel, angle, by), -1, -1)(image.astype(jnp.float32))
    lighter = moved + 255 * augment.brightness * light
    return jnp.clip(jnp.round(lighter), 0, 255).astype(jnp.uint8)


def turned(image: jax.Array, angle: jax.Array, shift: jax.Array) -> jax.Array:
    """An image (H, W) turned about its middle and then moved; what comes in from outside repeats the border.

    Args:
      image: float32.
      angle: in radians, counterclockwise as it is looked at.
      shift: down and to the right, in pixels.
    """
    middle = (jnp.array(image.shape, jnp.float32) - 1) / 2
    rows, columns = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in image.shape), indexing="ij")
    down, right = rows - middle[0] - shift[0], columns - middle[1] - shift[1]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    places = [middle[0] + cosine * down + sine * right, middle[1] - sine * down + cosine * right]
    return map_coordinates(image, places, order=1, mode="nearest")
