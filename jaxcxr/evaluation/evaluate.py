"""An evaluation: generated sets against a real one, by every extractor and metric that is asked for."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.evaluation import comparison, extractors, texts
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Features, Row
from jaxcxr.evaluation.extractors import Chosen
from jaxcxr.evaluation.features import Extracted, extract
from jaxcxr.evaluation.metrics import METRICS, similarity
from jaxcxr.evaluation.metrics.features import blocks
from jaxcxr.evaluation.pictures import read_pictures
from jaxcxr.evaluation.sets import ImageSet, Item, by_group
from jaxcxr.evaluation.settings import OF_TEXTS, WITHIN_PROMPTS, Settings

_MOST_PROMPTS = 200  # whose images are compared with each other
_MOST_OF_ONE = 4  # images of a prompt: six pairs
_MOST_NEIGHBOURS = 20  # of a set


class Neighbours(NamedTuple):
    """A generated image of a set, the real one whose features are nearest, and their Euclidean distance."""

    set: str
    generated: Item
    real: Item
    distance: float


@dataclasses.dataclass
class Result:
    """What an evaluation has found.

    Attributes:
      rows: the numbers.
      left_out: why others are not there, a line each.
      counts: images by set: read, unreadable, and left out as duplicates.
      used: the digests of the weights of each extractor.
      nearest: by the first extractor, the generated images of each set that are nearest to a real one.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    used: dict[str, str] = dataclasses.field(default_factory=dict)
    nearest: list[Neighbours] = dataclasses.field(default_factory=list)


def evaluate(
    real: ImageSet,
    generated: Sequence[ImageSet],
    settings: Settings,
    size: int,
    folder: Path,
    seed: int = 0,
    *,
    nearest: bool = False,
) -> Result:
    """Compares each generated set with the real one.

    Args:
      real: real images.
      generated: the sets, of different names.
      settings: extractors, metrics and how.
      size: side in pixels that all images are brought to; 0 leaves them as they are.
      folder: where features are kept.
      seed: of what is drawn.
      nearest: whether to look for the generated images that are nearest to a real one.

    Raises:
      UserError: two sets have one name, or an extractor, its weights or the images cannot be read.
    """
    names = [each.name for each in generated]
    if len(set(names)) < len(names):
        raise UserError(f"--generated: two sets are called {max(names, key=names.count)}; rename one's folder")
    if real.name in names:
        real = dataclasses.replace(real, name=f"{real.name} (real)")
    result = Result()
    real, generated = (some(real, settings.images, seed), [some(each, settings.images, seed) for each in generated])
    of_networks = {*settings.metrics} & {*METRICS, *OF_TEXTS}
    for one in extractors.choose_all(settings.extractors if of_networks else (), settings.weights):
        result.used[one.name] = one.digest
        kept = _without_doubles(real, extract(real, one, size, folder), result)
        seen = set(kept[1].pixels.tolist())
        for images in generated:
            part = _readable(images, extract(images, one, size, folder), result)
            copies = sum(digest in seen for digest in part[1].pixels.tolist())
            result.counts[images.name]["equal to a real image"] = copies
            _compare(kept, part, one.name, settings, seed, result)
            _compare_texts(kept, part, one, settings, seed, result)
            if nearest and one.name == next(iter(result.used)):
                result.nearest += _nearest(kept, part)
    if WITHIN_PROMPTS in settings.metrics:
        _within_prompts(None if settings.as_published else real, generated, size, seed, result)
    return result


def some(images: ImageSet, most: int, seed: int) -> ImageSet:
    """At most so many images of a set, all if 0, drawn at random, since the first of a sorted list are no sample."""
    if not most or len(images.items) <= most:
        return images
    places = np.sort(np.random.default_rng(seed).permutation(len(images.items))[:most])
    return dataclasses.replace(images, items=[images.items[place] for place in places])


Part = tuple[ImageSet, Extracted]
"""Images and their features, in the same order."""


def _readable(images: ImageSet, found: Extracted, result: Result) -> Part:
    count = int(found.readable.sum())
    result.counts.setdefault(images.name, {})
    result.counts[images.name] |= {"images": count, "unreadable": len(found.readable) - count}
    return _rows(images, found, np.flatnonzero(found.readable))


def _without_doubles(images: ImageSet, found: Extracted, result: Result) -> Part:
    """Without images that are there already, pixel for pixel: they spoil nearest neighbours."""
    images, found = _readable(images, found, result)
    _, first = np.unique(found.pixels, return_index=True)
    result.counts[images.name] |= {"duplicates left out": len(found.pixels) - len(first), "images": len(first)}
    return _rows(images, found, np.sort(first))


def _rows(images: ImageSet, found: Extracted, places: np.ndarray) -> Part:
    items = [images.items[place] for place in places]
    return dataclasses.replace(images, items=items), Extracted(*(each[places] for each in found))


def _compare(real: Part, generated: Part, extractor: str, settings: Settings, seed: int, result: Result) -> None:
    metrics = [name for name in settings.metrics if name in METRICS]
    for group, ours, theirs in _groups(real, generated, settings.groups):
        rows, left_out = comparison.compare(
            _features(real, ours),
            _features(generated, theirs),
            metrics,
            of=generated[0].name,
            extractor=extractor,
            group=group,
            draws=settings.draws,
            seed=seed,
            halves=not settings.as_published,
        )
        result.rows += rows
        result.left_out += left_out


def _compare_texts(real: Part, generated: Part, one: Chosen, settings: Settings, seed: int, result: Result) -> None:
    metrics = [name for name in settings.metrics if name in OF_TEXTS]
    if not metrics or one.extractor.text is None:
        return
    ours, theirs = (texts.WithTexts(images.items, found.values, one) for images, found in (real, generated))
    if len(theirs):
        result.rows += texts.compare_texts(ours, theirs, metrics, generated[0].name, one.name, seed)
    else:
        result.left_out.append(f"{generated[0].name}: {', '.join(metrics)} need texts; none of its images has one")


def _nearest(real: Part, generated: Part) -> list[Neighbours]:
    """The generated images that are nearest to a real one, each with that."""
    found: list[tuple[float, int, int]] = []
    for rows, distances in blocks(generated[1].values.astype(np.float64), real[1].values.astype(np.float64)):
        nearest = distances.argmin(axis=1)
        least = np.sqrt(distances[np.arange(len(nearest)), nearest])
        found += zip(least.tolist(), range(rows.start, rows.stop), nearest.tolist(), strict=True)
    return [
        Neighbours(generated[0].name, generated[0].items[ours], real[0].items[theirs], distance)
        for distance, ours, theirs in sorted(found)[:_MOST_NEIGHBOURS]
    ]


def _features(part: Part, places: np.ndarray) -> Features:
    images, found = part
    patients = np.array([images.items[place].patient for place in places], object)
    return Features(found.values[places], patients)


def _groups(real: Part, generated: Part, columns: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields all images, then those of each group that both sets have: its name, and the places of its images."""
    yield "", np.arange(len(real[0].items)), np.arange(len(generated[0].items))
    for column in columns:
        ours, theirs = (by_group(part[0].items, (column,)) for part in (real, generated))
        if len(ours.keys() | theirs.keys()) > 1:
            for name in sorted(ours.keys() & theirs.keys()):
                yield name, np.flatnonzero(ours[name]), np.flatnonzero(theirs[name])


def _within_prompts(real: ImageSet | None, generated: Sequence[ImageSet], size: int, seed: int, result: Result) -> None:
    """How alike the images of one prompt are: less is more diverse. Six pairs of four images (RoentGen).

    The floor is how alike the images of different patients are whose reports say the same; there is none without real.
    """
    floor: tuple[float | None, float | None, float | None] = (None, None, None)
    if real is not None:
        _, theirs = _alike(real, size, seed, of_patients=True)
        if len(theirs):
            floor = _with_interval(theirs, seed)
        else:
            said = f"{real.name}: no two patients have a report in common; {WITHIN_PROMPTS} has no floor"
            result.left_out.append(said)
    for images in generated:
        name, ours = _alike(images, size, seed)
        if not len(ours):
            result.left_out.append(f"{images.name}: {WITHIN_PROMPTS} needs two images of one size of a prompt")
            continue
        if name == "ssim_within":
            result.left_out.append(
                f"{images.name}: MS-SSIM needs a side of more than {similarity.LEAST_SIDE} pixels; SSIM in its place"
            )
        result.rows.append(Row(images.name, name, "", "", *_with_interval(ours, seed), *floor, len(ours)))


def _with_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The mean of what prompts have, with its interval."""
    low, high = bootstrap(values, np.arange(len(values)), seed=seed)
    return float(values.mean()), float(low), float(high)


def _alike(images: ImageSet, size: int, seed: int, *, of_patients: bool = False) -> tuple[str, np.ndarray]:
    """The metric that images of this size allow, and its mean over the pairs of images of each text, (texts,).

    With `of_patients` a text has one image of each patient.
    """
    by_text: dict[str, dict[str, int]] = {}
    for place, item in enumerate(images.items):
        if item.text:
            by_text.setdefault(item.text, {}).setdefault(item.patient if of_patients else str(place), place)
    groups = [[*places.values()][:_MOST_OF_ONE] for places in by_text.values() if len(places) > 1]
    found, name = [], ""
    for number in np.random.default_rng(seed).permutation(len(groups))[:_MOST_PROMPTS]:
        pictures = read_pictures(images, size, [images.items[place] for place in groups[number]], skip=True)
        if len({picture.pixels.shape for picture in pictures}) != 1 or len(pictures) < 2:
            continue  # of other sizes, or not to be read
        pixels = np.stack([picture.pixels for picture in pictures]) / 255
        measure = similarity.ms_ssim if min(pixels.shape[1:]) >= similarity.LEAST_SIDE + 1 else similarity.ssim
        name = f"{measure.__name__}_within"
        first, second = zip(*itertools.combinations(range(len(pixels)), 2), strict=True)
        found.append(measure(pixels[list(first)], pixels[list(second)]).mean())
    return name, np.array(found)
