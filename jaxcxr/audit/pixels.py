"""Pixel correlation as an extractor: small gray images, compared where they overlap at the best alignment."""

import functools
import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from jaxcxr.evaluation.metrics.features import pieces

SIDE = 32
REACH = 3
"""Pixels of `SIDE` by which an image is shifted at most, each way."""
ZOOMS = (1.0, 1.1)
"""How much of its centre a training image is enlarged by, as of a copy that was cropped."""
HALVES = (0.0, 0.5)
"""Parts of a pixel by which a training image is shifted besides, each way."""


class Pixels:
    """The extractor `pixels`: an image reduced to `SIDE` × `SIDE`, without weights."""

    name = "pixels"
    digest = f"none; {SIDE} pixels a side, shifts to {REACH} by {HALVES[1]}, mirrored, enlarged by {max(ZOOMS)}"

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """An image, uint8 (H, W), as float32 (SIDE, SIDE): averages of its parts."""
        # Antialiased by Pillow in float, so that a uint8 rounding does not add to the noise of what is small already.
        picture = Image.fromarray(pixels.astype(np.float32))
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


class Stacked:
    """What makes vectors of prepared images where there is no network: it lays their pixels in a row."""

    def features(self, inputs: Iterable[np.ndarray | None]) -> np.ndarray:
        """float32 (N, SIDE · SIDE); NaN where there is no image."""
        none = np.full(SIDE * SIDE, np.nan, np.float32)
        return np.stack([none if each is None else each.ravel() for each in inputs])


def mirrored(values: np.ndarray) -> np.ndarray:
    """Vectors (N, SIDE · SIDE) of the images with left and right exchanged."""
    return values.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(values), -1)


def aligned_correlation(first: ArrayLike, second: ArrayLike, reach: int = REACH) -> np.ndarray:
    """Pearson's correlation of the pixels of pairs where they overlap, at the alignment where it is greatest.

    The alignments are all shifts of up to `reach` pixels each way, by half pixels, with the first image mirrored or
    not, and the second enlarged by each of `ZOOMS`. An image without contrast correlates with nothing: 0.

    Args:
      first: P square images, (P, S, S) or (P, S · S).
      second: as many of the same side.
      reach: fewer than S.

    Returns:
      float64 (P,), −1 to 1.
    """
    a, b = (_square(np.asarray(images, np.float64)) for images in (first, second))
    of_a_pair = 16 * a.shape[1] ** 2 * (2 * reach + 1) ** 2
    return np.concatenate([np.empty(0), *(_block(a[rows], b[rows], reach) for rows in pieces(len(a), 4 * of_a_pair))])


def _square(images: np.ndarray) -> np.ndarray:
    side = images.shape[-1] if images.ndim == 3 else round(images.shape[-1] ** 0.5)
    return images.reshape(-1, side, side)


def _block(first: np.ndarray, second: np.ndarray, reach: int) -> np.ndarray:
    """All alignments of some pairs as products of matrices: K shifts, 2 mirrorings, J enlargements and half shifts."""
    # Without its mean an image has small sums, and little is lost where they are subtracted.
    first, second = (images - images.mean(axis=(1, 2), keepdims=True) for images in (first, second))
    moves = itertools.product(ZOOMS, HALVES, HALVES)
    others = np.stack([_flat(_moved(second, *move)) for move in moves], axis=1)  # (P, J, S · S)
    ones = np.stack([first, first[:, :, ::-1]], axis=1)  # (P, 2, S, S)
    overlap = _shifts(np.ones((1, *first.shape[1:])), reach)[0]  # (K, S · S)
    count = overlap.sum(axis=1)
    products = _shifts(ones, reach) @ others.swapaxes(1, 2)[:, None]  # (P, 2, K, J)
    # Where the second image is overlapped at a shift, the first one is at the opposite shift.
    total, deviation = (each[..., None] for each in _moments(_flat(ones), overlap[::-1], count))  # (P, 2, K, 1)
    other_total, other_deviation = (each.swapaxes(1, 2)[:, None] for each in _moments(others, overlap, count))
    covariance = products - total * other_total / count[:, None]
    scale = np.sqrt(deviation * other_deviation)
    found = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-9 * count[:, None])
    return np.clip(found.reshape(len(found), -1).max(axis=1, initial=-1.0), -1, 1)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(*images.shape[:-2], -1)


def _shifts(images: np.ndarray, reach: int) -> np.ndarray:
    """Images (…, S, S) at each of K shifts, with zeros where they do not reach, (…, K, S · S)."""
    side, ends = images.shape[-1], [(0, 0)] * (images.ndim - 2) + [(reach, reach)] * 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, ends), (side, side), axis=(-2, -1))
    return windows.reshape(*images.shape[:-2], -1, side * side)


def _moments(images: np.ndarray, overlap: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squared deviations from the mean over each overlap (K, S · S) of images (…, S · S): (…, K)."""
    total, squares = images @ overlap.T, images**2 @ overlap.T
    return total, np.maximum(squares - total**2 / count, 0)


def _moved(images: np.ndarray, zoom: float, down: float, right: float) -> np.ndarray:
    if (zoom, down, right) == (1, 0, 0):
        return images
    side = images.shape[1]
    return _interpolation(side, zoom, down) @ images @ _interpolation(side, zoom, right).T


@functools.cache
def _interpolation(side: int, zoom: float, shift: float) -> np.ndarray:
    """Weights of linear interpolation, (side, side), along an axis whose centre is enlarged and then shifted."""
    places = ((np.arange(side) + 0.5 + shift) - side / 2) / zoom + side / 2 - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side)))
