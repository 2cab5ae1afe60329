"""Thresholds at a stated rate of false alarms, and the share of copies that they leave to be estimated."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError
from jaxcxr.phantoms.scores import Rate

CONFIDENCE = 0.95
_DRAWS = 20_000


class Threshold(NamedTuple):
    """Above which similarity an image counts as a copy.

    Attributes:
      value: images that are more similar than this are flagged.
      rate: the rate of false alarms that was asked for; the true one is no greater, with a confidence of `CONFIDENCE`.
      rank: how many of the images that it was calibrated on are as similar or more.
      n: images that it was calibrated on, of a patient each.
    """

    value: float
    rate: float
    rank: int
    n: int

    @property
    def expected(self) -> float:
        """The mean rate of false alarms at such a threshold, rank / (n + 1)."""
        return self.rank / (self.n + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Between which the rate of false alarms lies, with a confidence of 95 %."""
        from scipy.stats import beta

        low, high = beta.ppf([0.025, 0.975], self.rank, self.n + 1 - self.rank)
        return float(low), float(high)


def least_images(rate: float, confidence: float = CONFIDENCE) -> int:
    """Held-out patients that a rate of false alarms needs: (1 − rate)ⁿ ≤ 1 − confidence, about 3 / rate."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def calibrate(similarities: ArrayLike, rate: float, confidence: float = CONFIDENCE) -> Threshold:
    """The lowest threshold whose rate of false alarms is at most `rate`, with this confidence.

    The rate of false alarms above the k-th highest of n independent values has the distribution Beta(k, n + 1 − k),
    whatever theirs is (Wilks 1941). The threshold is the k-th highest value, for the greatest k that the rate allows.

    Args:
      similarities: of images that are no copies with what they are most similar to, (N,), of a patient each.
      rate: between 0 and 1.
      confidence: between 0 and 1.

    Raises:
      UserError: there are too few images for this rate.
    """
    from scipy.stats import beta

    values = np.sort(np.asarray(similarities, np.float64))[::-1]
    count, least = len(values), least_images(rate, confidence)
    if count < least:
        possible = 1 - (1 - confidence) ** (1 / max(count, 1))
        raise UserError(
            f"--rate {rate:g}: needs {least} held-out patients who are not in the training set, and there are {count};"
            f" give more, or --rate {math.ceil(1000 * possible) / 1000:g}"
        )
    ranks = np.arange(1, count + 1)
    rank = int(ranks[beta.cdf(rate, ranks, count + 1 - ranks) >= confidence][-1])
    return Threshold(float(values[rank - 1]), rate, rank, count)


class Share(NamedTuple):
    """An estimated share of copies with its 95 % interval; all NaN where the threshold finds no more than chance."""

    value: float
    low: float
    high: float


def estimate_share(flagged: Rate, threshold: Threshold, recalls: Sequence[Rate], seed: int = 0) -> Share:
    """The share of copies in a set, corrected for false alarms and for copies that are not found.

    (flagged − f) / (r − f), of the rate of false alarms f and the recall r (Rogan and Gladen 1978), within 0 and 1. The
    interval is of draws of the three: flagged and recall from Beta(hits + ½, misses + ½), f from its distribution at
    the threshold. Which changes copies have undergone is not known, so each draw weighs the kinds of planted copies
    anew, uniformly.

    Args:
      flagged: images of the set that are flagged.
      threshold: by which.
      recalls: planted copies that are found, by kind; one kind or more.
      seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    false = draw.beta(threshold.rank, threshold.n + 1 - threshold.rank, _DRAWS)
    found = draw.beta(flagged.hits + 0.5, flagged.total - flagged.hits + 0.5, _DRAWS)
    each = [draw.beta(one.hits + 0.5, one.total - one.hits + 0.5, _DRAWS) for one in recalls]
    recall = (draw.dirichlet(np.ones(len(recalls)), _DRAWS) * np.stack(each, axis=1)).sum(axis=1)
    mean = float(np.mean([one.hits / one.total for one in recalls]))
    if mean <= threshold.expected or np.mean(recall <= false) > 0.025:
        return Share(math.nan, math.nan, math.nan)
    value = (flagged.hits / flagged.total - threshold.expected) / (mean - threshold.expected)
    # Where a draw of recall is no better than chance it says nothing against copies: their share may be all.
    shares = np.where(recall > false, (found - false) / np.maximum(recall - false, 1e-12), 1.0)
    low, high = np.quantile(np.clip(shares, 0, 1), [0.025, 0.975])
    return Share(float(np.clip(value, 0, 1)), float(low), float(high))
