"""How often a class is seen where it is, and not seen where it is not."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcxr.phantoms.truth import CLASSES, GRADES


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, J. Am. Stat. Assoc. 22:209, 1927); (0, 1) of no trials."""
    if not total:
        return 0.0, 1.0
    share, square = hits / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Rate:
    """So many hits of a total."""

    hits: int
    total: int

    def __post_init__(self) -> None:
        """Raises ValueError where there are more hits than trials."""
        if not 0 <= self.hits <= self.total <= 2**53:
            raise ValueError(f"{self.hits} hits of {self.total}")

    @classmethod
    def of(cls, hits: np.ndarray) -> "Rate":
        """The share of true values, bool (N,)."""
        return cls(int(hits.sum()), len(hits))

    @property
    def share(self) -> float:
        """Hits of the total; NaN of none."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson(self.hits, self.total)

    def as_dict(self) -> dict[str, Any]:
        """The rate as JSON values; the share of nothing is null."""
        share = self.share if self.total else None
        return {"share": share, "interval_95": list(self.interval), "hits": self.hits, "total": self.total}


@dataclass(frozen=True)
class Score:
    """Of a class: how many of the pictures that have it show it, and of the others how many do not."""

    sensitivity: Rate
    specificity: Rate

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {"sensitivity": self.sensitivity.as_dict(), "specificity": self.specificity.as_dict()}


def score(there: np.ndarray, seen: np.ndarray, known: np.ndarray | None = None) -> dict[str, Score]:
    """The score of each class, by name: what is there, bool (N, 16), against what is seen, bool (N, 16).

    Where `known`, bool (N, 16), is given, what is not known counts neither way.
    """
    yes, no = (there, ~there) if known is None else (there & known, ~there & known)
    return {
        name: Score(Rate.of(seen[yes[:, index], index]), Rate.of(~seen[no[:, index], index]))
        for index, name in enumerate(CLASSES)
    }


def score_grades(there: np.ndarray, seen: np.ndarray) -> dict[str, Rate]:
    """How often the size or zone is the right one, by kind: int (N, 6) each, -1 where a kind is not there."""
    return {
        kind: Rate.of(there[known, index] == seen[known, index])
        for index, kind in enumerate(GRADES)
        for known in [there[:, index] >= 0]
    }
