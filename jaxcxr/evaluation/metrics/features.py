"""Features that metrics take: what they must be, and distances between them a block of rows at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError

_AT_ONCE = 128 * 2**20  # bytes of a block of distances


def as_features(name: str, features: ArrayLike) -> np.ndarray:
    """Features as float64 (N, D); `name` is for messages.

    Raises:
      UserError: they have another shape, no column, or a number that is not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{name} features: are {array.dtype} of shape {array.shape}; give numbers (N, D)")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row = int(np.nonzero(~np.isfinite(array).all(axis=1))[0][0])
        raise UserError(f"{name} features: row {row} has a number that is not finite; compute them again")
    return array


def require_rows(real: np.ndarray, other: np.ndarray, least: int, generated: int | None = None) -> None:
    """Raises UserError where two sets of features differ in width or have too few rows.

    Args:
      real: (N, D).
      other: of generated images, (M, D).
      least: rows of both.
      generated: rows of the second, where it needs another number.
    """
    if real.shape[1] != other.shape[1]:
        raise UserError(f"features: the real ones are {real.shape[1]} wide, the generated ones {other.shape[1]}")
    for name, array, needed in (("real", real, least), ("generated", other, generated or least)):
        if len(array) < needed:
            raise UserError(f"{name} features: are of {len(array)} images; this metric needs {needed} or more")


def blocks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields rows of `first` (N, D) and their squared Euclidean distances from `second` (M, D), (rows, M)."""
    squares = np.einsum("nd,nd->n", second, second)
    for rows in pieces(len(first), 8 * len(second)):
        part = first[rows]
        distances = np.einsum("nd,nd->n", part, part)[:, None] + squares - 2 * (part @ second.T)
        yield rows, np.maximum(distances, 0, out=distances)


def pieces(rows: int, bytes_of_a_row: int) -> Iterator[slice]:
    """Consecutive slices of so many rows, each of a bounded size."""
    step = max(1, _AT_ONCE // max(1, bytes_of_a_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
