"""The Fréchet distance between two sets of features, each taken for a normal distribution (Heusel et al. 2017, arXiv
1706.08500), and its value for endlessly many generated images."""

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.evaluation.metrics.features import as_features, require_rows

SIZES = 15
"""Of subsets, in `frechet_infinity`."""
_SMALLEST = 5000


def frechet(real: ArrayLike, generated: ArrayLike) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½ of features (N, D) and (M, D), in float64; Σ are over n − 1.

    The last term is the sum of the singular values of A Bᵀ, where A and B are the centred rows over √(n − 1). That is
    exact for fewer rows than columns too, where other routes take the root of a singular matrix.

    Raises:
      UserError: a set has fewer than two rows, another width, or a number that is not finite.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, 2)
    (mean, centred), (other_mean, other) = _centred(first), _centred(second)
    return float(np.sum((mean - other_mean) ** 2) + np.sum(centred**2) + np.sum(other**2) - 2 * _root(centred, other))


def frechet_infinity(real: ArrayLike, generated: ArrayLike, seed: int = 0) -> float:
    """The intercept of the Fréchet distance over 1 / n, at 15 sizes of the generated set (Chong and Forsyth 2020, arXiv
    1911.07023; sizes as in dgm-eval). It may be negative.

    Args:
      real: features (N, D).
      generated: features (M, D).
      seed: of the order in which the generated ones are taken; each size has the first ones of an order of its own.

    Raises:
      UserError: as `frechet`, or fewer than 20 rows are generated.
    """
    first, second = as_features("real", real), as_features("generated", generated)
    require_rows(first, second, 2, generated=20)
    draw = np.random.default_rng(seed)
    sizes = np.linspace(min(_SMALLEST, len(second) // 10), len(second), SIZES).astype(int)
    found = [frechet(first, second[draw.permutation(len(second))[:size]]) for size in sizes]
    return float(np.polynomial.polynomial.polyfit(1 / sizes, found, 1)[0])


def _centred(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = features.mean(axis=0)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def _root(first: np.ndarray, second: np.ndarray) -> float:
    """tr (Σ₁ Σ₂)^½ of the covariances FᵀF and SᵀS."""
    width = first.shape[1]
    if min(len(first), len(second)) < width:
        return float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    # With F = Q₁ R₁ and S = Q₂ R₂ the singular values of F Sᵀ are those of R₁ R₂ᵀ, which is small.
    triangles = [np.asarray(np.linalg.qr(each, mode="r")) for each in (first, second)]
    return float(np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum())
