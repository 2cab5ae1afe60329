"""The error of pairs of images, whole or in a region."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError


def rmse(first: ArrayLike, second: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """The root of the mean squared difference of each pair, float64 (N,), in the unit of the images.

    Args:
      first: images (N, H, W), of any numbers; bytes do not wrap.
      second: images of the same shape.
      mask: bool (N, H, W); the mean is over the pixels where it is true. An empty one gives NaN.

    Raises:
      UserError: the shapes differ, a number is not finite, or the mask is not bool.
    """
    return np.sqrt(np.fromiter(_squared_errors(first, second, mask), np.float64))


def psnr(first: ArrayLike, second: ArrayLike, mask: ArrayLike | None = None, data_range: float = 1.0) -> np.ndarray:
    """The peak signal-to-noise ratio of each pair, 10 log₁₀(range² / mean squared difference), float64 (N,), in dB.

    Equal images have infinity. Arguments and errors are those of `rmse`.

    Args:
      first: images (N, H, W).
      second: images of the same shape.
      mask: bool (N, H, W), or None.
      data_range: the difference of the largest and the smallest value that there may be.
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / np.fromiter(_squared_errors(first, second, mask), np.float64))


def _squared_errors(first: ArrayLike, second: ArrayLike, mask: ArrayLike | None) -> Iterator[float]:
    """The mean squared difference of each pair; pair by pair, as float64 takes eight times the memory of bytes."""
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 3 or a.shape != b.shape:
        raise UserError(f"images: are of shapes {a.shape} and {b.shape}; give two arrays (N, H, W)")
    masks = None if mask is None else np.asarray(mask)
    if masks is not None and (masks.shape != a.shape or masks.dtype != np.bool_):
        raise UserError(f"mask: is {masks.dtype} of shape {masks.shape}; give bool {a.shape}")
    for place, (one, other) in enumerate(zip(a, b, strict=True)):
        squares = np.square(one.astype(np.float64) - other)
        if not np.isfinite(squares).all():
            raise UserError(f"images: pair {place} has a number that is not finite")
        if masks is not None:
            squares = squares[masks[place]]
        yield float(squares.mean()) if squares.size else np.nan
