"""Whether images and texts find each other: cosines of pairs, and ranks in a gallery."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.metrics.features import as_features, pieces


class Alignment(NamedTuple):
    """A mean over pairs of an image and a text, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the first right answer of each query comes in a gallery.

    Attributes:
      ranks: int (Q,), from 1; a wrong answer that scores as much as the right one comes before it.
      gallery: how many answers there are.
      chance: what recall at 1 is if the gallery is in a random order.
    """

    ranks: np.ndarray
    gallery: int
    chance: float

    @property
    def median(self) -> float:
        """The median rank."""
        return float(np.median(self.ranks))

    def recall(self, k: int) -> float:
        """R@k, the share of queries with a right answer among the first k."""
        return float(np.mean(self.ranks <= k))


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Ranks of N images among the U texts that they have, and of U texts among N images.

    Attributes:
      image_to_text: the right answer to an image is its own text.
      text_to_image: the right answers to a text are the images that have it.
      image_to_text_label_equal: so is each text that an image of equal label has; None without labels.
      text_to_image_label_equal: so is each image whose label is that of an image of the text; None without labels.
    """

    image_to_text: Ranks
    text_to_image: Ranks
    image_to_text_label_equal: Ranks | None = None
    text_to_image_label_equal: Ranks | None = None


def cosines(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The cosine of each pair of rows of two arrays (N, D), float64 (N,).

    Raises:
      UserError: the shapes differ, a number is not finite, or a row is zero.
    """
    a, b = _units("first", first), _units("second", second)
    if a.shape != b.shape:
        raise UserError(f"features: are of shapes {a.shape} and {b.shape}; give pairs of equal width")
    return np.einsum("nd,nd->n", a, b).clip(-1, 1)


def clip_scores(image_features: ArrayLike, text_features: ArrayLike) -> np.ndarray:
    """max(100 · cosine, 0) of each pair, float64 (N,); errors are those of `cosines`.

    The score is Hessel et al.'s (2021, arXiv 2104.08718) with torchmetrics' factor. torchmetrics clips the mean, not
    each score; that differs where a cosine is negative.
    """
    return np.maximum(100 * cosines(image_features, text_features), 0)


def alignment(
    image_features: ArrayLike, text_features: ArrayLike, patients: Sequence[str] | None = None, seed: int = 0
) -> Alignment:
    """The mean cosine of images and their texts.

    Args:
      image_features: (N, D).
      text_features: (N, D), of the text of each image.
      patients: what is drawn as one, (N,), as the patient or the prompt; by default each pair by itself.
      seed: of the interval's draws.

    Raises:
      UserError: as `cosines`.
    """
    return _mean(cosines(image_features, text_features), patients, seed)


def clip_score(
    image_features: ArrayLike, text_features: ArrayLike, patients: Sequence[str] | None = None, seed: int = 0
) -> Alignment:
    """The mean of `clip_scores`; arguments and errors are those of `alignment`."""
    return _mean(clip_scores(image_features, text_features), patients, seed)


def retrieval(
    image_features: ArrayLike,
    text_features: ArrayLike,
    texts: Sequence[str],
    labels: Sequence[object] | None = None,
) -> Retrieval:
    """Ranks by cosine, both ways.

    A text that several images have is one entry of the gallery and one query; its features are those of its first
    place. Many reports of healthy patients say the same in other words, and no model can tell which is whose. So
    with labels the ranks are given a second time, where answers of equal label are right too.

    Args:
      image_features: (N, D).
      text_features: (N, D), of the text of each image.
      texts: the texts, (N,).
      labels: of each image, (N,); anything hashable, as the set of its findings.

    Raises:
      UserError: as `cosines`, or not N texts and labels.
    """
    images, every = _units("image", image_features), _units("text", text_features)
    if images.shape != every.shape or len(texts) != len(images) or (labels is not None and len(labels) != len(images)):
        raise UserError(
            f"retrieval: is of images {images.shape}, texts {every.shape} by {len(texts)} names, "
            f"{len(images if labels is None else labels)} labels; give one of each for an image"
        )
    first, text = _numbered(texts)
    unique = every[first]
    numbers = np.arange(len(unique))
    plain = (
        _ranks(images, unique, lambda rows: text[rows, None] == numbers),
        _ranks(unique, images, lambda rows: numbers[rows, None] == text),
    )
    if labels is None:
        return Retrieval(*plain)
    kinds, label = _numbered(labels)
    has = np.zeros((len(unique), len(kinds)), bool)  # which labels the images of a text have
    has[text, label] = True
    equal = (
        _ranks(images, unique, lambda rows: has[:, label[rows]].T),
        _ranks(unique, images, lambda rows: has[rows][:, label]),
    )
    return Retrieval(*plain, *equal)


def _mean(values: np.ndarray, patients: Sequence[str] | None, seed: int) -> Alignment:
    drawn = np.arange(len(values)) if patients is None else np.asarray(patients)
    low, high = bootstrap(values, drawn, np.mean, seed=seed)
    return Alignment(float(values.mean()), float(low), float(high))


def _units(name: str, features: ArrayLike) -> np.ndarray:
    """Features as float64 of length one."""
    array = as_features(name, features)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if not len(array) or not lengths.all():
        what = "there are none" if not len(array) else f"row {int(np.flatnonzero(lengths == 0)[0])} is zero"
        raise UserError(f"{name} features: {what}, and has no cosine; compute them again")
    return array / lengths


def _numbered(names: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
    """The place where each name is first, (U,), and the number of each place's name, (N,)."""
    numbers: dict[object, int] = {}
    places = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    return np.unique(places, return_index=True)[1], places


def _ranks(queries: np.ndarray, gallery: np.ndarray, right: Callable[[slice], np.ndarray]) -> Ranks:
    """Ranks of queries (Q, D) in a gallery (G, D); `right` of a slice of them, bool (rows, G), are the answers."""
    ranks, share = [], 0.0
    for rows in pieces(len(queries), 8 * len(gallery)):
        scores, mine = queries[rows] @ gallery.T, right(rows)
        best = np.max(scores, axis=1, where=mine, initial=-np.inf)
        ranks.append(1 + np.sum((scores >= best[:, None]) & ~mine, axis=1))
        share += float(mine.mean(axis=1).sum())
    return Ranks(np.concatenate(ranks), len(gallery), share / len(queries))
