"""Radiograph files to square 8-bit gray arrays and back: never cropped, never flipped."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxcxr.errors import UserError

# A file's first bytes, the rest of its header (8 bits of gray, no interlacing), and the filter that takes the row above
# from a row.
_PNG, _GRAY, _UP = b"\x89PNG\r\n\x1a\n", bytes((8, 0, 0, 0, 0)), 2


class UnreadableImage(Exception):
    """A file that cannot be decoded; the message says why."""


def _to_gray(image: Image.Image) -> Image.Image:
    """Converts to 8-bit gray. Depth comes from the file's format, not from its contents, so that absolute
    intensity survives: 16-bit samples are divided by 257, whatever range the picture uses.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("L")
    samples = np.asarray(image).astype(np.float64)
    if image.mode == "F" or samples.min() < 0 or samples.max() > 65535:
        raise UnreadableImage(f"samples of mode {image.mode} are not 8-bit or 16-bit gray")
    return Image.fromarray(np.round(samples / 257).astype(np.uint8))


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() != ".dcm":
        return Image.open(path)
    from jaxcxr.data import dicom

    return dicom.load(path)


def load_square(path: Path, size: int, intensity: str = "stored") -> np.ndarray:
    """Reads an image file as a (size, size, 1) uint8 array, padded with black to a centred square.

    The longer side is resized to `size` by an antialiased Lanczos filter; JPEGs are first reduced by the
    decoder (DCT scaling) to no less than that, which makes full-size radiographs cheap to read.
    Orientation tags are obeyed. A file that ends in .dcm is read by `dicom.load`.

    Args:
      path: the file.
      size: pixels of a side.
      intensity: "stored"; "equalize" spreads the gray levels evenly; "percentile" stretches them so that the
        lowest and the highest 0.5 % become black and white.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableImage: it is empty, truncated or not a gray or colour picture.
      UserError: it is DICOM, and pydicom is not installed.
    """
    try:
        with _open(path) as image:
            image.draft("L", _fit(image.size, size))
            gray = _to_gray(ImageOps.exif_transpose(image))
            inner = gray.resize(_fit(gray.size, size), Image.Resampling.LANCZOS)
    except (FileNotFoundError, MemoryError, UnreadableImage, UserError):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(type(error).__name__) from error
    if intensity == "equalize":
        inner = ImageOps.equalize(inner)
    elif intensity == "percentile":
        inner = ImageOps.autocontrast(inner, cutoff=0.5)
    square = np.zeros((size, size, 1), np.uint8)
    top, left = (size - inner.height) // 2, (size - inner.width) // 2
    square[top : top + inner.height, left : left + inner.width, 0] = np.asarray(inner)
    return square


def _fit(wh: tuple[int, int], side: int) -> tuple[int, int]:
    """Scales a (width, height) so that the longer is `side` and neither is below 1."""
    scale = side / max(wh)
    return max(1, round(wh[0] * scale)), max(1, round(wh[1] * scale))


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a (height, width, 1) uint8 array as a gray PNG."""
    height, width, _ = image.shape
    # Each row less the one above, and of repetitions runs alone. Pillow tries five filters a row and settles on ones
    # that save a tenth of the bytes but take twice the time to write and half as much again to read.
    rows = np.full((height, 1 + width), _UP, np.uint8)
    rows[:, 1:] = np.diff(image[..., 0], axis=0, prepend=np.uint8(0))
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    chunks = (
        (b"IHDR", struct.pack(">2I", width, height) + _GRAY),
        (b"IDAT", packer.compress(rows) + packer.flush()),
        (b"IEND", b""),
    )
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def decode_png(data: bytes) -> np.ndarray:
    """Decodes a gray PNG to a (height, width, 1) uint8 array; one of `encode_png` in less time than others."""
    (length,) = struct.unpack(">I", data[33:37])
    end = 41 + length
    if (data[24:29], data[37:41], data[end + 8 : end + 12]) == (_GRAY, b"IDAT", b"IEND"):
        width, height = struct.unpack(">2I", data[16:24])
        rows = np.frombuffer(zlib.decompress(data[41:end]), np.uint8).reshape(height, 1 + width)
        if (rows[:, 0] == _UP).all():
            return np.add.accumulate(rows[:, 1:], axis=0, dtype=np.uint8)[..., None]
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)[..., None]
