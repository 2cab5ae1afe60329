"""Intervals that know that images of one patient are alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError


def bootstrap(
    values: ArrayLike,
    patients: ArrayLike,
    statistic: Callable[[np.ndarray], Any] = np.nanmean,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Any, Any]:
    """The percentile interval of a statistic over resamples of patients (Efron 1979; Field and Welsh 2007).

    A resample draws as many patients as there are, with replacement, and has all images of each patient as often as the
    patient was drawn. Both ends are values of resamples, so an infinite one may be among them.

    Args:
      values: of images, (N,) or (N, K).
      patients: whose image each is, (N,).
      statistic: rows of `values` -> a number, or an array of numbers, each of which gets an interval of its own.
      resamples: how many.
      seed: of the draws.
      level: the share of resamples that the interval holds; those whose statistic is NaN do not count.

    Returns:
      The lower and the upper end, numbers or arrays as `statistic` returns; NaN where there is one patient alone.

    Raises:
      UserError: there are no values, or not one patient for each.
    """
    array, names = np.asarray(values), np.asarray(patients)
    if array.ndim not in (1, 2) or not len(array) or names.shape != array.shape[:1]:
        raise UserError(f"values: are of shape {array.shape}, patients of {names.shape}; give a patient for each value")
    _, patient = np.unique(names, return_inverse=True)
    order = np.argsort(patient, kind="stable")
    sizes = np.bincount(patient)
    if len(sizes) == 1:
        none = np.full(np.shape(statistic(array)), np.nan)[()]
        return none, none
    starts = np.cumsum(sizes) - sizes
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = draw.integers(len(sizes), size=len(sizes))
        own = sizes[drawn]
        # The places of each drawn patient's images: from the patient's start, counted up.
        within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        found.append(statistic(array[order[np.repeat(starts[drawn], own) + within]]))
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.array(found, np.float64), (tail, 1 - tail), axis=0, method="inverted_cdf")
    return low, high
