"""Metrics of classifiers: pure functions of labels and scores, in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError


class RocCurve(NamedTuple):
    """A receiver operating characteristic; an image is called positive where its score is at least the threshold.

    Attributes:
      false_positive_rate: (T + 1,), from 0 to 1.
      true_positive_rate: (T + 1,), from 0 to 1.
      thresholds: infinity and the T distinct scores, falling.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


class Underdiagnosis(NamedTuple):
    """False "no finding" rates of groups (Seyyed-Kalantari et al. 2021, doi:10.1038/s41591-021-01595-0).

    Attributes:
      rates: by group, the share of the sick that are called healthy; groups with too few sick are left out.
      sick: how many each rate is of.
      gap: the largest rate less the smallest; NaN of fewer than two groups.
    """

    rates: dict[str, float]
    sick: dict[str, int]
    gap: float


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive scores more than a negative; a tie counts one half (Hanley and McNeil 1982).

    Args:
      labels: bool (N,).
      scores: (N,), of any unit.

    Returns:
      0 to 1; NaN where a class is absent.

    Raises:
      UserError: the shapes differ, labels are not bool, or a score is not finite.
    """
    truth, values = _pair(labels, scores)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return np.nan
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The curve whose area is `auroc`; arguments and errors are those of `auroc`. A rate of no image is NaN."""
    truth, values = _pair(labels, scores)
    thresholds, true, false = _counts(truth, values)
    return RocCurve(
        _from_zero(false, len(truth) - truth.sum()),
        _from_zero(true, truth.sum()),
        np.append(np.inf, thresholds),
    )


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """The precision at each threshold, weighted by how much recall it adds; nothing is interpolated.

    Args:
      labels: bool (N,).
      scores: (N,).

    Returns:
      0 to 1; NaN where there is no positive.

    Raises:
      UserError: as `auroc`.
    """
    truth, values = _pair(labels, scores)
    if not truth.any():
        return np.nan
    _, true, false = _counts(truth, values)
    return float(np.sum(np.diff(true, prepend=0) / truth.sum() * true / (true + false)))


def best_f1_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score that gives the best F1 where scores of at least it are called positive; of equals, the highest.

    Choose it on other images than those that it is used on.

    Args:
      labels: bool (N,).
      scores: (N,).

    Returns:
      One of the scores; NaN where there is no positive.

    Raises:
      UserError: as `auroc`.
    """
    truth, values = _pair(labels, scores)
    if not truth.any():
        return np.nan
    thresholds, true, false = _counts(truth, values)
    return float(thresholds[np.argmax(2 * true / (true + false + truth.sum()))])


def f1_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """The harmonic mean of precision and recall where scores of at least the threshold are called positive.

    Args:
      labels: bool (N,).
      scores: (N,).
      threshold: a score; NaN gives NaN.

    Returns:
      0 to 1; NaN where nothing is positive and nothing is called so.

    Raises:
      UserError: as `auroc`.
    """
    truth, values = _pair(labels, scores)
    called = values >= threshold
    total = int(truth.sum() + called.sum())
    return 2 * int((truth & called).sum()) / total if total and not np.isnan(threshold) else np.nan


def accuracy_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """The share of images that are called right; arguments and errors are those of `f1_at`. NaN of no image."""
    truth, values = _pair(labels, scores)
    return float(np.mean(truth == (values >= threshold))) if len(truth) and not np.isnan(threshold) else np.nan


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """How far probabilities of a finding are from its frequency, on average over images.

    Images are sorted into bins of equal width by probability, each with its upper edge (Guo et al. 2017, arXiv
    1706.04599). Here the probability is that of the finding, not that of the likelier of two answers.

    Args:
      labels: bool (N,).
      probabilities: (N,), 0 to 1.
      bins: how many.

    Returns:
      0 to 1; NaN of no image.

    Raises:
      UserError: as `auroc`, or a probability is outside 0 to 1.
    """
    truth, values = _probabilities(labels, probabilities)
    if not len(truth):
        return np.nan
    # Searched among edges, as bins · p would put some edges' own values in the bin above.
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="left")
    gaps = np.bincount(place, weights=truth - values, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean squared difference of probability and label (Brier 1950), 0 to 1; NaN of no image.

    Args:
      labels: bool (N,).
      probabilities: (N,), 0 to 1.

    Raises:
      UserError: as `auroc`, or a probability is outside 0 to 1.
    """
    truth, values = _probabilities(labels, probabilities)
    return float(np.mean(np.square(truth - values))) if len(truth) else np.nan


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """The correlation of two arrays of numbers (N,), −1 to 1; NaN where either is constant.

    Raises:
      UserError: the shapes differ, or a number is not finite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(f"numbers: are of shapes {a.shape} and {b.shape}; give two arrays (N,)")
    _require_finite("numbers", a, b)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    a, b = a - a.mean(), b - b.mean()
    # Sums in place of products of BLAS, whose threads cost more than they save on arrays of this size.
    product = np.sum(a * b) / np.sqrt(np.sum(np.square(a))) / np.sqrt(np.sum(np.square(b)))
    return float(np.clip(product, -1, 1))


def confusion(asked: ArrayLike, seen: ArrayLike) -> np.ndarray:
    """What is seen of what was asked for, where images have several classes: shares, float64 (K, K).

    Cell (i, j) is of the images that were asked for class i and, where j is another class, not for j: the share of them
    in which j is seen. So the diagonal is the sensitivity, and the rest is what was drawn unasked. NaN is of no image.

    Args:
      asked: bool (N, K).
      seen: bool (N, K).

    Raises:
      UserError: they are not bool, or not of one shape.
    """
    wanted, found = np.asarray(asked), np.asarray(seen)
    if wanted.ndim != 2 or wanted.shape != found.shape or {wanted.dtype, found.dtype} != {np.dtype(bool)}:
        raise UserError(
            f"classes: are {wanted.dtype} of shape {wanted.shape} and {found.dtype} of {found.shape}; give bool (N, K)"
        )
    every, others = wanted.astype(np.float64), (~wanted).astype(np.float64)
    total, hits = every.T @ others, every.T @ (others * found)
    np.fill_diagonal(total, every.sum(axis=0))
    np.fill_diagonal(hits, (wanted & found).sum(axis=0))
    return np.divide(hits, total, out=np.full_like(hits, np.nan), where=total > 0)


def underdiagnosis(
    no_finding_predicted: ArrayLike, sick: ArrayLike, groups: Sequence[str], least: int = 1
) -> Underdiagnosis:
    """How often the sick of each group are called healthy, and how unequal that is.

    Args:
      no_finding_predicted: bool (N,).
      sick: bool (N,), truly with any finding.
      groups: the group of each image, (N,); as sex, age and race joined with a sign that none of them has.
      least: sick images that a group needs; a rate of few is 0 or 1 by chance, and widens the gap.

    Raises:
      UserError: the lengths differ, or the first two are not bool.
    """
    healthy, ill, group = np.asarray(no_finding_predicted), np.asarray(sick), np.asarray(groups)
    if ill.ndim != 1 or not healthy.shape == ill.shape == group.shape or {healthy.dtype, ill.dtype} != {np.dtype(bool)}:
        raise UserError(
            f"underdiagnosis: is of {healthy.dtype} {healthy.shape}, {ill.dtype} {ill.shape} and groups {group.shape}; "
            "give bool (N,) twice, and N groups"
        )
    names, place = np.unique(group, return_inverse=True)
    totals = np.bincount(place, weights=ill, minlength=len(names)).astype(int)
    missed = np.bincount(place, weights=ill & healthy, minlength=len(names))
    kept = [index for index in range(len(names)) if totals[index] >= max(least, 1)]
    rates = {str(names[index]): float(missed[index] / totals[index]) for index in kept}
    gap = max(rates.values()) - min(rates.values()) if len(rates) > 1 else np.nan
    return Underdiagnosis(rates, {str(names[index]): int(totals[index]) for index in kept}, gap)


def _pair(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or truth.dtype != np.bool_:
        raise UserError(
            f"labels: are {truth.dtype} of shape {truth.shape}, scores of {values.shape}; give bool (N,) and N scores"
        )
    _require_finite("scores", values)
    return truth, values


def _probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, values = _pair(labels, probabilities)
    outside = np.flatnonzero((values < 0) | (values > 1))
    if len(outside):
        raise UserError(f"probabilities: number {outside[0]} is {values[outside[0]]:g}; give 0 to 1, not logits")
    return truth, values


def _require_finite(name: str, *arrays: np.ndarray) -> None:
    for values in arrays:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise UserError(f"{name}: number {bad[0]} is {values[bad[0]]}; compute them again")


def _counts(truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, falling, and how many positives and negatives score at least each; float64 (T,)."""
    thresholds, place = np.unique(-values, return_inverse=True)
    true = np.bincount(place, weights=truth, minlength=len(thresholds))
    every = np.bincount(place, minlength=len(thresholds))
    return -thresholds, np.cumsum(true), np.cumsum(every - true)


def _from_zero(counts: np.ndarray, total: int) -> np.ndarray:
    """Counts as shares, after a zero."""
    whole = np.append(0.0, counts)
    return whole / total if total else np.full_like(whole, np.nan)
