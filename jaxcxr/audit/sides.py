"""What an audit compares: training, held-out and generated images, without those that would spoil it, each counted."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcxr.audit.calibrate import least_images
from jaxcxr.errors import UserError
from jaxcxr.evaluation.features import Extracted
from jaxcxr.evaluation.sets import SUFFIXES, ImageSet

Counts = dict[str, dict[str, int]]
"""By set: `images` that are compared, and those that are not by why."""


class Side(NamedTuple):
    """Images of a set with their features.

    Attributes:
      images: the set.
      values: float32 (N, D).
      patients: (N,).
    """

    images: ImageSet
    values: np.ndarray
    patients: np.ndarray

    def taken(self, places: np.ndarray) -> "Side":
        """Those at some places."""
        return Side(
            dataclasses.replace(self.images, items=[self.images.items[int(place)] for place in places]),
            self.values[places],
            self.patients[places],
        )


class Sides(NamedTuple):
    """What is compared."""

    train: Side
    held_out: Side
    generated: Side


def patients(images: ImageSet) -> np.ndarray:
    """Whose each image is, (N,)."""
    return np.array([item.patient for item in images.items], str)


def require_enough(train: ImageSet, held_out: ImageSet, rate: float) -> ImageSet:
    """The held-out set without images of patients who are in the training set.

    Raises:
      UserError: fewer are left than the rate of false alarms needs.
    """
    known, names = set(patients(train).tolist()), patients(held_out)
    own = [place for place, name in enumerate(names.tolist()) if name not in known]
    count, shared = len({names[place] for place in own}), len(set(names.tolist()) & known)
    if count < (least := least_images(rate)):
        also = f" beside {shared} who are in the training set too" if shared else ""
        raise UserError(
            f"{held_out.name}: has {count} held-out patients{also}; --rate {rate:g} needs {least}; give more of them, "
            f"or a greater --rate, as {_possible(count)}"
        )
    return dataclasses.replace(held_out, items=[held_out.items[place] for place in own])


def _possible(count: int) -> str:
    rates = (rate for rate in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if least_images(rate) <= count)
    found = next(rates, None)
    return "0.5 with 5 patients" if found is None else f"{found:g}"


def cleaned(
    train: tuple[ImageSet, Extracted],
    held_out: tuple[ImageSet, Extracted],
    generated: tuple[ImageSet, Extracted],
    counts: Counts,
) -> Sides:
    """Without images that cannot be read, real ones that are there already, and held-out ones that are training images
    pixel for pixel; how many these are is added to `counts`.

    Raises:
      UserError: no image of a set is left.
    """
    parts = zip(_NAMES, (train, held_out, generated), strict=True)
    ours, theirs, drawn = (_readable(name, *part, counts) for name, part in parts)
    ours = _first(ours, train[1], "train", counts)
    theirs = _first(theirs, held_out[1], "held_out", counts)
    seen = set(train[1].pixels[ours].tolist())
    alone = np.array([digest not in seen for digest in held_out[1].pixels[theirs].tolist()], bool)
    counts["held_out"] |= {"equal to a training image": int((~alone).sum()), "images": int(alone.sum())}
    if not alone.any():
        raise UserError(f"{held_out[0].name}: all of its images are in the training set; give other ones")
    equal = sum(digest in seen for digest in generated[1].pixels[drawn].tolist())
    counts["generated"]["equal to a training image"] = equal
    return Sides(_side(*train, ours), _side(*held_out, theirs[alone]), _side(*generated, drawn))


_NAMES = ("train", "held_out", "generated")


def _readable(name: str, images: ImageSet, found: Extracted, counts: Counts) -> np.ndarray:
    places = np.flatnonzero(found.readable)
    counts.setdefault(name, {})
    counts[name] |= {"images": len(places), "unreadable": len(found.readable) - len(places)}
    return places


def _first(places: np.ndarray, found: Extracted, name: str, counts: Counts) -> np.ndarray:
    _, first = np.unique(found.pixels[places], return_index=True)
    counts[name] |= {"duplicates left out": len(places) - len(first), "images": len(first)}
    return places[np.sort(first)]


def _side(images: ImageSet, found: Extracted, places: np.ndarray) -> Side:
    return Side(images, found.values, patients(images)).taken(places)


def one_of_each(names: np.ndarray, seed: int) -> np.ndarray:
    """The place of one image of each patient, drawn at random, (P,) in order."""
    order = np.random.default_rng(seed).permutation(len(names))
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first])


def unlisted(folder: Path, images: ImageSet) -> int:
    """How many pictures a folder of images has that its table or manifest does not list."""
    if images.kind not in ("samples", "folder") or not folder.is_dir():
        return 0
    files = {str(file.resolve()) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()}
    return len(files - {item.stamp.rsplit("/", 2)[0] for item in images.items})


def pixels_of(images: ImageSet, places: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, size, size) of images at some places, which can be read."""
    return np.stack([images.items[int(place)].load(size) for place in places])
