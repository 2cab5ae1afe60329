"""Tests of copying that need distances alone: are generated images nearer to training images than they should be."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_PERMUTATIONS = 9_999


def z_u(generated: ArrayLike, held_out: ArrayLike) -> float:
    """Whether generated images are nearer to the training images than held-out ones are (Meehan et al. 2020, arXiv
    2004.05675): the standardised statistic of Mann and Whitney, far below 0 where they are.

    Standard normal where both are of one distribution. Ties count one half; the correction for continuity is that of
    the authors' code.

    Args:
      generated: the distance of each generated image from its nearest training image, (M,).
      held_out: that of each held-out image, (N,).

    Returns:
      The statistic; NaN where there are no images of one kind.
    """
    from scipy.stats import rankdata

    ours, theirs = np.asarray(generated, np.float64), np.asarray(held_out, np.float64)
    m, n = len(ours), len(theirs)
    if not (m and n):
        return np.nan
    ranks = rankdata(np.concatenate([ours, theirs]))
    u = ranks[:m].sum() - m * (m + 1) / 2
    return float((u - m * n / 2 + 0.5) / np.sqrt(m * n * (m + n + 1) / 12))


def c_t(
    generated: ArrayLike, held_out: ArrayLike, cells: ArrayLike, held_out_cells: ArrayLike, least: float = 0.0
) -> float:
    """C_T: the mean of `z_u` over cells of the space, weighed by their shares of the held-out images (Meehan et al.
    2020, equation 3). So copies in one region count though images of another are far from all.

    Distances are from the nearest training image of all, not of the cell.

    Args:
      generated: as of `z_u`.
      held_out: as of `z_u`.
      cells: which cell each generated image is in, int (M,).
      held_out_cells: which one each held-out image is in, int (N,).
      least: share of the generated images that a cell has at least, to count.

    Returns:
      The statistic; NaN where no cell counts.
    """
    ours, theirs = np.asarray(generated, np.float64), np.asarray(held_out, np.float64)
    own, other = np.asarray(cells), np.asarray(held_out_cells)
    values, weights = [], []
    for cell in np.unique(other):
        inside, there = own == cell, other == cell
        if inside.any() and inside.mean() >= least:
            values.append(z_u(ours[inside], theirs[there]))
            weights.append(there.mean())
    return float(np.average(values, weights=weights)) if values else np.nan


def k_means(vectors: ArrayLike, count: int, seed: int = 0, rounds: int = 50) -> np.ndarray:
    """Centres (count, D) of vectors (N, D), by Lloyd's algorithm begun as k-means++ (Arthur and Vassilvitskii 2007)."""
    points, draw = np.asarray(vectors, np.float64), np.random.default_rng(seed)
    centres = points[draw.integers(len(points))][None]
    while len(centres) < min(count, len(points)):
        squares = _squares(points, centres).min(axis=1)
        if not squares.sum():
            break
        centres = np.concatenate([centres, points[draw.choice(len(points), p=squares / squares.sum())][None]])
    for _ in range(rounds):
        nearest = cell_of(points, centres)
        moved = np.stack(
            [points[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(len(centres))]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


def cell_of(vectors: ArrayLike, centres: np.ndarray) -> np.ndarray:
    """The centre (K, D) that is nearest to each vector (N, D), int (N,)."""
    return _squares(np.asarray(vectors, np.float64), centres).argmin(axis=1)


def _squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances, (N, K)."""
    products = points @ centres.T
    return np.maximum((points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * products, 0)


class Exchange(NamedTuple):
    """Of images, to how many a training image is more similar than every held-out one is.

    Attributes:
      nearer: these images.
      total: all of them.
      chance: the share that there would be if no image were learnt from.
      p: how likely so many are then.
    """

    nearer: int
    total: int
    chance: float
    p: float


def exchange(
    train_similarity: ArrayLike,
    held_out_similarity: ArrayLike,
    train_match: ArrayLike,
    held_out_match: ArrayLike,
    train_patients: ArrayLike,
    held_out_patients: ArrayLike,
    seed: int = 0,
) -> Exchange:
    """Whether images lie nearer to training images than to held-out ones, beyond what their numbers explain.

    A model that copies nothing cannot tell training patients from held-out ones of the same source. So which patients
    are called training patients may be exchanged: an exact permutation test by patient. It holds however blurred the
    generated images are, and where many of them lie near one image.

    Args:
      train_similarity: of each image with its most similar training image, (N,).
      held_out_similarity: with its most similar held-out image, (N,).
      train_match: the place of that training image, int (N,).
      held_out_match: the place of that held-out image, int (N,).
      train_patients: of all training images.
      held_out_patients: of all held-out images, others.
      seed: of the permutations.
    """
    ours, theirs = np.asarray(train_similarity), np.asarray(held_out_similarity)
    total = len(ours)
    names = np.concatenate([np.asarray(train_patients, str), np.asarray(held_out_patients, str)])
    _, patient = np.unique(names, return_inverse=True)
    train_count = len(np.asarray(train_patients))
    is_train = np.zeros(patient.max() + 1, bool)
    is_train[patient[:train_count]] = True
    chance = float(is_train.mean())
    if not total:
        return Exchange(0, 0, chance, 1.0)
    nearer = ours > theirs
    place = np.where(nearer, np.asarray(train_match), train_count + np.asarray(held_out_match))
    counts = np.bincount(patient[place], minlength=len(is_train))
    observed = int(nearer.sum())
    matched = counts[counts > 0]  # other patients only take up places
    draw, above = np.random.default_rng(seed), 0
    for _ in range(_PERMUTATIONS):
        labels = draw.permutation(is_train)[: len(matched)]
        above += int(matched[labels].sum()) >= observed
    return Exchange(observed, total, chance, (1 + above) / (1 + _PERMUTATIONS))
