"""Pixel correlation as an extractor: small gray images, compared where they overlap at the best alignment."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

SIDE = 32
REACH = 3
"""Pixels of `SIDE` by which an image is shifted at most, each way."""
ZOOMS = (1.0, 1.1)
"""How much of its centre a training image is enlarged by, as of a copy that was cropped."""
_AT_ONCE = 256  # pairs


class Pixels:
    """The extractor `pixels`: an image reduced to `SIDE` × `SIDE`, without weights."""

    name = "pixels"
    digest = f"none; {SIDE} pixels a side, shifts to {REACH}, mirrored, enlarged by {', '.join(map(str, ZOOMS))}"

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

    The alignments are all shifts of up to `reach` pixels each way, with the first image mirrored or not, and the second
    enlarged by each of `ZOOMS`. An image without contrast correlates with nothing: 0.

    Args:
      first: P square images, (P, S, S) or (P, S · S).
      second: as many of the same side.
      reach: fewer than S.

    Returns:
      float64 (P,), −1 to 1.
    """
    a, b = (_square(np.asarray(images, np.float64)) for images in (first, second))
    found = [_block(a[start : start + _AT_ONCE], b[start : start + _AT_ONCE], reach) for start in _starts(len(a))]
    return np.concatenate(found) if found else np.empty(0)


def _starts(count: int) -> range:
    return range(0, count, _AT_ONCE)


def _square(images: np.ndarray) -> np.ndarray:
    side = images.shape[-1] if images.ndim == 3 else round(images.shape[-1] ** 0.5)
    return images.reshape(-1, side, side)


def _block(first: np.ndarray, second: np.ndarray, reach: int) -> np.ndarray:
    # Without its mean an image has small sums, and little is lost where they are subtracted.
    first, second = (images - images.mean(axis=(1, 2), keepdims=True) for images in (first, second))
    best = np.full(len(first), -1.0)
    turned = [_Sums(first), _Sums(first[:, :, ::-1])]
    for zoom in ZOOMS:
        other = _Sums(_enlarged(second, zoom))
        for one in turned:
            for here, there in _windows(first.shape[1], reach):
                np.maximum(best, _correlation(one, here, other, there), out=best)
    return best


Window = tuple[slice, slice]


def _windows(side: int, reach: int) -> Iterator[tuple[Window, Window]]:
    """Where two images overlap, in each of them, at every shift."""
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            here = _overlap(side, down), _overlap(side, right)
            yield here, (_overlap(side, -down), _overlap(side, -right))


def _overlap(side: int, shift: int) -> slice:
    return slice(max(0, shift), side + min(0, shift))


class _Sums:
    """Images with the sums of their pixels and of their squares over any window."""

    def __init__(self, images: np.ndarray):
        self.images = np.ascontiguousarray(images)
        self._first, self._second = _summed(self.images), _summed(self.images**2)

    def moments(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Sum and sum of squared deviations from the mean of each image's window, (P,) each."""
        total, squares = _between(self._first, window), _between(self._second, window)
        count = (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
        return total, np.maximum(squares - total**2 / count, 0)


def _summed(images: np.ndarray) -> np.ndarray:
    return np.pad(images.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))


def _between(summed: np.ndarray, window: Window) -> np.ndarray:
    (top, bottom), (left, right) = ((axis.start, axis.stop) for axis in window)
    return summed[:, bottom, right] - summed[:, top, right] - summed[:, bottom, left] + summed[:, top, left]


def _correlation(one: _Sums, here: Window, other: _Sums, there: Window) -> np.ndarray:
    a, b = one.images[:, *here], other.images[:, *there]
    (total, deviation), (other_total, other_deviation) = one.moments(here), other.moments(there)
    count = a.shape[1] * a.shape[2]
    covariance = np.einsum("phw,phw->p", a, b) - total * other_total / count
    scale = np.sqrt(deviation * other_deviation)
    return np.divide(covariance, scale, out=np.zeros(len(a)), where=scale > 1e-9 * count)


def _enlarged(images: np.ndarray, zoom: float) -> np.ndarray:
    if zoom == 1:
        return images
    matrix = _zoom_matrix(images.shape[1], zoom)
    return matrix @ images @ matrix.T


@functools.cache
def _zoom_matrix(side: int, zoom: float) -> np.ndarray:
    """Weights of linear interpolation, (side, side), of an axis whose centre is enlarged."""
    places = ((np.arange(side) + 0.5) - side / 2) / zoom + side / 2 - 0.5
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))
