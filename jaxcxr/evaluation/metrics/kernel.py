"""Kernel distances between two sets of features."""

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.evaluation.metrics.features import as_features, pieces, require_rows


def kid(real: ArrayLike, generated: ArrayLike) -> float:
    """The unbiased squared maximum mean discrepancy of all features, under the kernel (xᵀy / D + 1)³ (Bińkowski et al.
    2018, arXiv 1801.01401).

    It has the expectation of the mean over subsets that other tools report (`kid_of_subsets`), and no seed.

    Args:
      real: (N, D).
      generated: (M, D).

    Raises:
      UserError: a set has fewer than two rows, another width, or a number that is not finite.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, 2)
    return _unbiased(first, second)


def kid_of_subsets(
    real: ArrayLike, generated: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation of `kid` over pairs of random subsets, as torch-fidelity draws them.

    Args:
      real: (N, D).
      generated: (M, D).
      subsets: how many.
      size: rows of each, without replacement.
      seed: of the draw; 2020 is torch-fidelity's.

    Raises:
      UserError: as `kid`, or a set has fewer than `size` rows.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, size)
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        # The generated ones are drawn first, as there.
        some = second[draw.choice(len(second), size, replace=False)]
        found.append(_unbiased(first[draw.choice(len(first), size, replace=False)], some))
    return float(np.mean(found)), float(np.std(found))


def _unbiased(first: np.ndarray, second: np.ndarray) -> float:
    def mean_of_others(features: np.ndarray) -> float:
        count = len(features)
        own = np.einsum("nd,nd->n", features, features)
        return (_sum(features, features) - np.sum(_kernel(own, features.shape[1]))) / (count * (count - 1))

    both = _sum(first, second) / (len(first) * len(second))
    return mean_of_others(first) + mean_of_others(second) - 2 * both


def _kernel(products: np.ndarray, width: int) -> np.ndarray:
    return (products / width + 1) ** 3


def _sum(first: np.ndarray, second: np.ndarray) -> float:
    """The sum of the kernel over all pairs."""
    rows = pieces(len(first), 8 * len(second))
    return float(sum(_kernel(first[part] @ second.T, first.shape[1]).sum() for part in rows))
