"""Statistics of readers: pure functions, in float64."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError

Level = Literal["nominal", "ordinal"]
LEVELS: tuple[Level, Level] = ("nominal", "ordinal")


class Detection(NamedTuple):
    """Signal detection theory's two numbers.

    Attributes:
      sensitivity: d′, 0 by chance.
      criterion: c; below 0 the reader says yes more often than not.
    """

    sensitivity: float
    criterion: float


def detection(hits: int, positives: int, false_alarms: int, negatives: int) -> Detection:
    """d′ = z(H) − z(F) and c = −(z(H) + z(F)) / 2 with the log-linear correction, which keeps both finite.

    A half is added to both counts of yes and one to both totals (Hautus 1995, doi:10.3758/BF03203619).

    Args:
      hits: positives that were called so.
      positives: how many there are.
      false_alarms: negatives that were called positive.
      negatives: how many there are.

    Returns:
      NaN twice where a class is absent.
    """
    if not positives or not negatives:
        return Detection(math.nan, math.nan)
    z = NormalDist().inv_cdf
    hit, false = z((hits + 0.5) / (positives + 1)), z((false_alarms + 0.5) / (negatives + 1))
    return Detection(hit - false, -(hit + false) / 2)


def signed_scores(positive: ArrayLike, confidence: ArrayLike) -> np.ndarray:
    """Answers with confidence as one scale, float64 (N,): the confidence, negative where the answer is negative.

    Args:
      positive: answers, bool (N,).
      confidence: above 0, (N,).
    """
    return np.where(np.asarray(positive, bool), 1.0, -1.0) * np.asarray(confidence, np.float64)


def fleiss_kappa(answers: ArrayLike) -> float:
    """Agreement of readers beyond chance on categories (Fleiss 1971, doi:10.1037/h0031619).

    Args:
      answers: categories as numbers, (R, N): a row a reader, a column an item. NaN is no answer; items that not every
        reader has answered do not count.

    Returns:
      1 at most; NaN of fewer than two readers, of no item, or where there is one category alone.

    Raises:
      UserError: as `krippendorff_alpha`.
    """
    values = _table(answers)
    values = values[:, ~np.isnan(values).any(axis=0)]
    readers, items = values.shape
    if readers < 2 or not items:
        return math.nan
    counts = np.stack([(values == category).sum(axis=0) for category in np.unique(values)], axis=1).astype(np.float64)
    agreed = (np.sum(counts**2) - items * readers) / (items * readers * (readers - 1))
    expected = float(np.sum((counts.sum(axis=0) / (items * readers)) ** 2))
    return float((agreed - expected) / (1 - expected)) if expected < 1 else math.nan


def krippendorff_alpha(answers: ArrayLike, level: Level) -> float:
    """Agreement of readers beyond chance, whoever has read what (Krippendorff 2011, "Computing alpha-reliability").

    Args:
      answers: (R, N), a row a reader, a column an item; NaN is no answer. Items with one answer do not count.
      level: nominal, answers are equal or not; ordinal, they have an order.

    Returns:
      1 at most; NaN where no item has two answers, or all answers are equal.

    Raises:
      UserError: the table is not of two dimensions, or an answer is infinite.
    """
    values = _table(answers)
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    categories = np.unique(values[~np.isnan(values)])
    if len(categories) < 2:
        return math.nan
    counts = np.stack([(values == category).sum(axis=0) for category in categories], axis=1).astype(np.float64)
    of_item = counts.sum(axis=1, keepdims=True)
    pairs = (counts / (of_item - 1)).T @ counts - np.diag((counts / (of_item - 1)).sum(axis=0))
    totals = pairs.sum(axis=1)
    by_chance = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distance = _distance(totals, level)
    return float(1 - np.sum(pairs * distance) / np.sum(by_chance * distance))


def cohen_kappa(first: ArrayLike, second: ArrayLike, level: Level) -> float:
    """Agreement of two readings beyond chance (Cohen 1960, doi:10.1177/001316446002000104).

    Args:
      first: answers as numbers, (N,).
      second: those of the other reading.
      level: nominal; ordinal weights differences by the square of how many categories lie between (Cohen 1968), where
        the categories are those that were given.

    Returns:
      1 at most; NaN of no item, or where there is one category alone.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    categories, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    if len(categories) < 2:
        return math.nan
    seen = np.zeros((len(categories), len(categories)))
    np.add.at(seen, (place[: len(one)], place[len(one) :]), 1)
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / len(one)
    steps = np.subtract.outer(np.arange(len(categories)), np.arange(len(categories)))
    weights = (steps != 0).astype(np.float64) if level == "nominal" else steps.astype(np.float64) ** 2
    return float(1 - np.sum(weights * seen) / np.sum(weights * expected))


def intervals(
    strata: ArrayLike,
    readers: int,
    statistic: Callable[[np.ndarray, np.ndarray], Any],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Any, Any]:
    """The 95 % percentile intervals of statistics over resamples of readers and of cases, both with replacement.

    Both are random: the interval holds for other readers and other images (as Gallas et al. 2009,
    doi:10.1080/03610920802610084). Cases are drawn within their stratum. A reader alone is not drawn again, so then the
    interval is of cases alone.

    Args:
      strata: the stratum of each case, (N,).
      readers: how many.
      statistic: (places of readers, places of cases) -> a number, or an array of them.
      resamples: how many.
      seed: of the draws.

    Returns:
      The lower and the upper ends; resamples whose statistic is NaN do not count.
    """
    _, stratum = np.unique(np.asarray(strata), return_inverse=True)
    groups = [np.flatnonzero(stratum == number) for number in range(stratum.max(initial=-1) + 1)]
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        who = draw.integers(readers, size=readers)
        cases = [group[draw.integers(len(group), size=len(group))] for group in groups]
        found.append(statistic(who, np.concatenate(cases) if cases else np.zeros(0, int)))
    values = np.array(found, np.float64)
    known = ~np.isnan(values).all(axis=0)
    low, high = np.nanquantile(np.where(known, values, 0), (0.025, 0.975), axis=0, method="inverted_cdf")
    return np.where(known, low, np.nan)[()], np.where(known, high, np.nan)[()]


def _table(answers: ArrayLike) -> np.ndarray:
    values = np.asarray(answers, np.float64)
    if values.ndim != 2 or np.isinf(values).any():
        raise UserError(f"answers: are of shape {values.shape}; give finite numbers or NaN (readers, items)")
    return values


def _distance(totals: np.ndarray, level: Level) -> np.ndarray:
    """How far categories are apart, (K, K); of ordinal ones, by how many answers lie between."""
    if level == "nominal":
        return 1 - np.eye(len(totals))
    upto = np.cumsum(totals)
    middle = upto - totals / 2  # the sum from one category to another less half of either
    return np.subtract.outer(middle, middle) ** 2
