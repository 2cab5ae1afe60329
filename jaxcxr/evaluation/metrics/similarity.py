"""Structural similarity of pairs of images, at one scale and at five."""

import itertools

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.diffusion.objective import K1, K2, WINDOW, gaussian_windows
from jaxcxr.errors import UserError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, from the finest."""
LEAST_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1)
"""The shorter side is longer than this, or the coarsest scale is smaller than the window."""


def ssim(first: ArrayLike, second: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Structural similarity of each pair, float64 (N,) (Wang et al. 2004): Gaussian window of 11, σ 1.5, inside alone.

    Args:
      first: images (N, H, W).
      second: images of the same shape.
      data_range: the difference of the largest and the smallest value that there may be.

    Raises:
      UserError: the shapes differ, a side is less than 11, or a number is not finite.
    """
    a, b = _pairs(first, second, WINDOW)
    return _similarity(a, b, data_range)[0]


def ms_ssim(first: ArrayLike, second: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Structural similarity at five scales, float64 (N,) (Wang et al. 2003), each half of the one before.

    Arguments and errors are those of `ssim`; a side is to be more than 160 pixels. What is negative at a scale counts
    as zero, as in pytorch-msssim.
    """
    a, b = _pairs(first, second, LEAST_SIDE + 1)
    found = np.ones(len(a))
    for scale, weight in enumerate(WEIGHTS):
        whole, structure = _similarity(a, b, data_range)
        last = scale == len(WEIGHTS) - 1
        found *= np.maximum(whole if last else structure, 0) ** weight
        a, b = (a, b) if last else (_halved(a), _halved(b))
    return found


def ms_ssim_within(images: ArrayLike, data_range: float = 1.0) -> float:
    """The mean of `ms_ssim` over all pairs of images of the same prompt: less is more diverse.

    Args:
      images: (prompts, images of each, H, W).
      data_range: as for `ssim`.

    Raises:
      UserError: as `ms_ssim`, or there are fewer than two images of a prompt.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] < 2:
        raise UserError(f"images: are of shape {array.shape}; give two or more of each prompt, (prompts, images, H, W)")
    pairs = itertools.combinations(range(array.shape[1]), 2)
    return float(np.mean([ms_ssim(array[:, a], array[:, b], data_range).mean() for a, b in pairs]))


def _pairs(first: ArrayLike, second: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 3 or a.shape != b.shape:
        raise UserError(f"images: are of shapes {a.shape} and {b.shape}; give two arrays (N, H, W)")
    if min(a.shape[1:]) < least:
        raise UserError(f"images: are of {a.shape[1]} x {a.shape[2]} pixels; this metric needs {least} or more a side")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("images: have a number that is not finite")
    return a, b


def _similarity(a: np.ndarray, b: np.ndarray, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Means over each image (N,): of the whole index, and of its part without luminance."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a = _blurred(a * a) - mean_a**2
    variance_b = _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    whole = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure
    return whole.mean(axis=(1, 2)), structure.mean(axis=(1, 2))


def _blurred(images: np.ndarray) -> np.ndarray:
    """(N, H, W) -> (N, H - 10, W - 10): the Gaussian window wherever all of it is inside."""
    return _along_last(_along_last(images).swapaxes(1, 2)).swapaxes(1, 2)


def _along_last(images: np.ndarray) -> np.ndarray:
    """The window along the last axis, (N, H, W) -> (N, H, W - 10): one large product, as many small ones are slow."""
    count, height, width = images.shape
    return (images.reshape(-1, width) @ gaussian_windows(width).T).reshape(count, height, -1)


def _halved(images: np.ndarray) -> np.ndarray:
    """(N, H, W) -> means of 2 × 2 pixels; an odd side gets a zero at each end, which counts, as in pytorch-msssim."""
    odd = [side % 2 for side in images.shape[1:]]
    padded = np.pad(images, ((0, 0), *((each, each) for each in odd)))
    height, width = (side // 2 for side in padded.shape[1:])
    return padded[:, : 2 * height, : 2 * width].reshape(len(images), height, 2, width, 2).mean(axis=(2, 4))
