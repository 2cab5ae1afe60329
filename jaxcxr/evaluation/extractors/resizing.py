"""The resizings that published feature extractors use: of Pillow, of PyTorch and of TensorFlow 1.

A size is (height, width). An array is (H, W, C) float32, in any unit unless a function says otherwise.

| function | filter | where the image shrinks |
|---|---|---|
| `pil_bicubic`, `pil_bilinear` | a = −1/2, linear | the filter widens; rounded to bytes |
| `pil_float_bicubic` | a = −1/2 | the filter widens; not rounded |
| `torch_bicubic` | a = −1/2 with `antialias`, else −3/4 | the filter widens with `antialias` alone |
| `torch_bilinear` | linear | the filter widens with `antialias` alone |
| `tf1_bilinear` | linear, between pixels' corners in place of their centres | the filter stays |

PyTorch and TensorFlow compute positions in float32, and so do these functions: at pixel 1000 the spacing is 6e-5.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Size = tuple[int, int]
_HALF = np.float32(0.5)


def rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB; gray becomes three equal channels."""
    return image.convert("RGB")


def gray(image: Image.Image) -> Image.Image:
    """The picture in mode L; of RGB the luma of ITU-R 601-2, as Pillow rounds it."""
    return image.convert("L")


def pixels(image: Image.Image) -> np.ndarray:
    """The bytes of a picture of mode L or RGB, as (H, W, 1) or (H, W, 3) float32 in 0..255."""
    array = np.asarray(image, np.float32)
    return array if array.ndim == 3 else array[:, :, None]


def pil_bicubic(image: Image.Image, size: Size) -> np.ndarray:
    """Pillow's bicubic of bytes, 0..255."""
    return pixels(image.resize(_pillow(size), Image.Resampling.BICUBIC))


def pil_bilinear(image: Image.Image, size: Size) -> np.ndarray:
    """Pillow's bilinear of bytes, 0..255."""
    return pixels(image.resize(_pillow(size), Image.Resampling.BILINEAR))


def pil_float_bicubic(image: Image.Image, size: Size) -> np.ndarray:
    """Pillow's bicubic of each channel as 32-bit floats, clipped to 0..255 and not rounded (arXiv 2104.11222)."""
    channels = [channel.convert("F").resize(_pillow(size), Image.Resampling.BICUBIC) for channel in image.split()]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def torch_bilinear(array: np.ndarray, size: Size, antialias: bool = False) -> np.ndarray:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` of floats."""
    return _resized(array, size, _widened(_linear, 1) if antialias else _between_centres)


def torch_bicubic(array: np.ndarray, size: Size, antialias: bool = False) -> np.ndarray:
    """`torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` of floats; may overshoot their range."""
    return _resized(array, size, _widened(lambda x: _cubic(x, -0.5), 2) if antialias else _cubic_between_centres)


def tf1_bilinear(array: np.ndarray, size: Size) -> np.ndarray:
    """TensorFlow 1's `resize_bilinear(align_corners=False)`, which puts output pixel i at i · in / out."""
    return _resized(array, size, _between_corners)


def short_edge(size: Size, length: int) -> Size:
    """The size with the short edge made `length`; the long edge is rounded down, as torchvision's `Resize` does."""
    height, width = size
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def centre_crop(array: np.ndarray, size: Size) -> np.ndarray:
    """The middle of an array that is no smaller; odd rests are split as torchvision's `CenterCrop` does."""
    # Half a pixel goes to the even neighbour, as Python rounds.
    top, left = (round((have - want) / 2) for have, want in zip(array.shape[:2], size, strict=True))
    return array[top : top + size[0], left : left + size[1]]


def _pillow(size: Size) -> tuple[int, int]:
    return size[1], size[0]


def _resized(array: np.ndarray, size: Size, weights: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """`array` with each axis multiplied by the matrix `weights(length, new length)`, float32 (new length, length)."""
    planes = np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
    rows, columns = (weights(*lengths) for lengths in zip(planes.shape[1:], size, strict=True))
    return np.ascontiguousarray((rows @ planes @ columns.T).transpose(1, 2, 0))


def _matrix(length: int, taps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The matrix with row i's `weights[i]` in the columns `taps[i]`; columns beyond an edge add to that edge's."""
    matrix = np.zeros((len(taps), length), np.float32)
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps.clip(0, length - 1)), weights)
    return matrix


def _positions(length: int, new_length: int) -> np.ndarray:
    """The output pixels' centres among the input's, which lie at whole numbers."""
    scale = np.float32(length) / np.float32(new_length)
    return (np.float64(scale) * (np.arange(new_length) + 0.5) - 0.5).astype(np.float32)  # as one rounding, like an FMA


def _between(length: int, positions: np.ndarray) -> np.ndarray:
    first = np.floor(positions)
    share = positions - first
    return _matrix(length, first[:, None].astype(int) + np.arange(2), np.stack([1 - share, share], axis=1))


def _between_centres(length: int, new_length: int) -> np.ndarray:
    return _between(length, _positions(length, new_length))  # those before the first pixel take it alone


def _between_corners(length: int, new_length: int) -> np.ndarray:
    # The ratio is rounded once, from float64, as the product with it is.
    return _between(length, np.arange(new_length, dtype=np.float32) * np.float32(length / new_length))


def _cubic_between_centres(length: int, new_length: int) -> np.ndarray:
    positions = _positions(length, new_length)
    first = np.floor(positions)
    distances = (positions - first)[:, None] - np.arange(-1, 3, dtype=np.float32)
    return _matrix(length, first[:, None].astype(int) + np.arange(-1, 3), _cubic(distances, -0.75))


def _widened(kernel: Callable[[np.ndarray], np.ndarray], radius: int) -> Callable[[int, int], np.ndarray]:
    """The weights of a filter that widens with the ratio where the image shrinks, and sums to one at the edges too."""

    def weights(length: int, new_length: int) -> np.ndarray:
        scale = np.float32(length) / np.float32(new_length)
        stretch = max(scale, np.float32(1))
        centres = scale * (np.arange(new_length, dtype=np.float32) + _HALF)
        first = np.maximum(centres - radius * stretch + _HALF, 0).astype(int)
        last = np.minimum((centres + radius * stretch + _HALF).astype(int), length)
        taps = first[:, None] + np.arange((last - first).max())
        values = kernel((taps - centres[:, None] + _HALF).astype(np.float32) / stretch)
        values = np.where(taps < last[:, None], values, np.float32(0))
        return _matrix(length, taps, values / values.sum(axis=1, keepdims=True))

    return weights


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The kernel of R. G. Keys, doi:10.1109/TASSP.1981.1163711, whose slope at 1 is `a`."""
    x = abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0)).astype(np.float32)
