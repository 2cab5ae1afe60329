"""Images of a set with their pixels in memory: what a classifier sees and what a page shows."""

import contextlib
import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxcxr.data.images import UnreadableImage
from jaxcxr.errors import UserError
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.phantoms.prompts import Asked


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with what is known of it.

    `pixels` is uint8 (H, W). `text` is the prompt of a generated image, the findings of a phantom. `asked` is what a
    generated image was asked to show, what a phantom truly shows, and None where nobody says.
    """

    pixels: np.ndarray
    text: str = ""
    asked: Asked | None = None


def readable(images: ImageSet, size: int) -> tuple[ImageSet, int]:
    """The set without images that cannot be decoded, and how many these are."""
    kept = []
    for item in images.items:
        with contextlib.suppress(FileNotFoundError, UnreadableImage):
            item.load(size)
            kept.append(item)
    return dataclasses.replace(images, items=kept), len(images.items) - len(kept)


def read_pictures(
    images: ImageSet, size: int, items: Iterable[Item] | None = None, *, skip: bool = False
) -> list[Picture]:
    """The pictures of a set, or of some of its items, at `size` pixels a side.

    Args:
      images: the set.
      size: the side in pixels.
      items: of the set; all by default.
      skip: leave out those that cannot be decoded.

    Raises:
      UserError: one cannot be decoded.
    """
    found = []
    for item in images.items if items is None else items:
        try:
            found.append(Picture(item.load(size), item.text, item.asked))
        except (FileNotFoundError, UnreadableImage) as error:
            if not skip:
                name = item.stamp.rsplit("/", 3)[-3]  # not its path, which may have a patient's number
                raise UserError(
                    f"{images.name}: {name} cannot be decoded ({error}); remove it, or copy it again"
                ) from error
    return found
