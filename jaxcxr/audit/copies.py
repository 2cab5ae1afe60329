"""Planted copies: training images changed a little, by which the recall of a threshold is measured."""

import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from jaxcxr.evaluation.sets import ImageSet, Item

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(pixels uint8 (H, W), draws) -> pixels uint8 (H, W)."""


def jpeg(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A JPEG file of quality 50, read again."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=50)
    return np.asarray(Image.open(data).convert("L"))


def noise(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Gaussian noise of 8 gray levels of 255."""
    return _bytes(pixels + 8 * draw.standard_normal(pixels.shape))


def shift(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """By up to 5 % of the side, at least a pixel, each way; the edge is repeated."""
    most = max(1, round(0.05 * min(pixels.shape)))
    down, right = (int(draw.integers(1, most + 1)) * int(draw.choice((-1, 1))) for _ in range(2))
    padded = np.pad(pixels, most, mode="edge")
    height, width = pixels.shape
    return padded[most - down : most - down + height, most - right : most - right + width]


def crop(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A part with 90 % of each side, somewhere in the image, enlarged to the image's size."""
    height, width = pixels.shape
    top, left = (draw.uniform(0, 0.1) * side for side in (height, width))
    box = (left, top, left + 0.9 * width, top + 0.9 * height)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box))


def flip(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Left and right exchanged."""
    return pixels[:, ::-1]


def contrast(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Contrast times 0.7 to 1.3, brightness by up to 16 levels."""
    return _bytes((pixels - 127.5) * draw.uniform(0.7, 1.3) + 127.5 + draw.uniform(-16, 16))


CHANGES: dict[str, Change] = {
    "jpeg": jpeg,
    "noise": noise,
    "shift": shift,
    "crop": crop,
    "flip": flip,
    "contrast": contrast,
}
"""By name; the recall of each is printed."""


def planted(images: ImageSet, name: str, count: int, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """Changed copies of images of a set, drawn at random, and their places in the set.

    Args:
      images: the set.
      name: a key of `CHANGES`.
      count: how many at most; none is drawn twice.
      seed: of the draw and the changes.
    """
    places = chosen(len(images.items), count, seed)
    items = []
    for number, place in enumerate(places):
        item = images.items[int(place)]
        load = functools.partial(_changed, item, name, (seed, number))
        items.append(item._replace(load=load, stamp=f"{item.stamp}/{name}/{seed}/{number}"))
    return ImageSet(f"planted copies, {name}", "planted", items), places


def chosen(total: int, count: int, seed: int) -> np.ndarray:
    """Places of at most so many of `total`, drawn without replacement, in order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def given(images: ImageSet, places: Sequence[int], pixels: np.ndarray, name: str) -> ImageSet:
    """Copies that are made already, uint8 (N, S, S), of images of a set at these places."""
    items = []
    for place, one in zip(places, pixels, strict=True):
        item = images.items[int(place)]
        # Of the pixels too: another model's copies of the same images are other ones.
        stamp = f"{item.stamp}/{name}/{hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest()}"
        items.append(item._replace(load=functools.partial(_given, one), stamp=stamp))
    return ImageSet(f"planted copies, {name}", "planted", items)


def mixed(shares: Mapping[str, float], pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images uint8 (N, H, W), each changed by one of the named changes, drawn with these weights."""
    draw, names = np.random.default_rng(seed), list(shares)
    weights = np.array(list(shares.values()), float)
    drawn = draw.choice(len(names), len(pixels), p=weights / weights.sum())
    return np.stack([CHANGES[names[kind]](one, draw) for kind, one in zip(drawn, pixels, strict=True)])


def _changed(item: Item, name: str, seed: tuple[int, int], side: int) -> np.ndarray:
    return np.ascontiguousarray(CHANGES[name](item.load(side), np.random.default_rng(seed)))


def _given(pixels: np.ndarray, side: int) -> np.ndarray:
    return pixels


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
