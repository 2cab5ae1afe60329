"""Metrics by nearest neighbours: is what is drawn like real images, is all of them covered, is any of it a copy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.evaluation.metrics.features import as_features, blocks, require_rows


class Prdc(NamedTuple):
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv
    2002.09797).

    Attributes:
      precision: share of generated images that lie in the ball of any real one.
      recall: share of real images that lie in the ball of any generated one.
      density: real balls that hold a generated image, over k, on average.
      coverage: share of real images whose ball holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: ArrayLike, generated: ArrayLike, k: int = 5) -> Prdc:
    """Of features (N, D) and (M, D), Euclidean; a ball reaches to the k-th neighbour in its own set, less its edge.

    Raises:
      UserError: a set has no more than k rows, another width, or a number that is not finite.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, k + 1)
    radius, other_radius = _radii(first, k), _radii(second, k)
    held = np.zeros(len(second), np.int64)  # real balls that hold each generated image
    recalled, covered = 0, 0
    for rows, distances in blocks(first, second):
        held += (distances < radius[rows, None]).sum(axis=0)
        recalled += int((distances < other_radius).any(axis=1).sum())
        covered += int((distances.min(axis=1) < radius[rows]).sum())
    return Prdc(
        float((held > 0).mean()), recalled / len(first), float(held.sum() / (k * len(second))), covered / len(first)
    )


def authenticity(real: ArrayLike, generated: ArrayLike) -> float:
    """The share of generated images that are no copies: the nearest real image of each has a real neighbour that is
    nearer to it still (Alaa et al. 2022, arXiv 2102.08921, as dgm-eval counts it).

    Args:
      real: features (N, D), of the images that were learnt from.
      generated: features (M, D).

    Raises:
      UserError: fewer than two real rows, another width, or a number that is not finite.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, 2, generated=1)
    radius, authentic = _radii(first, 1), 0
    for _, distances in blocks(second, first):
        nearest = distances.argmin(axis=1)
        authentic += int((radius[nearest] < distances[np.arange(len(nearest)), nearest]).sum())
    return authentic / len(second)


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each row (N,) from its k-th neighbour, itself left out."""
    found = np.empty(len(features))
    for rows, distances in blocks(features, features):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return found
