"""Image files to square 8-bit arrays, gray or in colour, and back: never cropped, never flipped."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcxr.data.settings import DEFAULT_PIXELS
from jaxcxr.errors import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""What is read as a picture, whatever a file is called; Pillow would give PostScript to Ghostscript."""

MOST_SIDE = 2**16 - 1  # pixels, as in JPEG and DICOM; weights for resizing take 48 bytes for each
MOST_BYTES = 4  # of a file, for each pixel allowed: as many as a decoded pixel takes at most
_BAND = 2**20  # samples that are converted at once
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit is data.max_pixels

# A file's first bytes, the rest of its header by channels (8 bits, gray or colour, no interlacing), and the filter that
# takes the row above from a row.
_PNG, _HEADERS, _UP = b"\x89PNG\r\n\x1a\n", {1: bytes((8, 0, 0, 0, 0)), 3: bytes((8, 2, 0, 0, 0))}, 2


class UnreadableImage(Exception):
    """A file that is not decoded; the message says why, and `reason` is the short key for it."""

    def __init__(self, message: str, reason: str = "unreadable_image"):
        super().__init__(message)
        self.reason = reason


def require_pixels(width: int, height: int, most: int) -> None:
    """Raises UnreadableImage if a picture of this size is larger than allowed."""
    if width * height > most or max(width, height) > MOST_SIDE:
        raise UnreadableImage("too many pixels", "image_too_large")


def require_bytes(path: Path, most_pixels: int) -> None:
    """Raises UnreadableImage if a file is larger than the largest picture that is allowed is without compression."""
    if path.stat().st_size > MOST_BYTES * most_pixels + 2**20:
        raise UnreadableImage("too many bytes", "image_too_large")


def open_picture(path: Path, most_pixels: int = DEFAULT_PIXELS) -> Image.Image:
    """Opens a picture of one of `FORMATS` and reads its header, no pixel.

    Raises:
      OSError: the file cannot be opened.
      UnreadableImage: it is of another format, or larger than allowed.
    """
    require_bytes(path, most_pixels)
    return _opened(path, most_pixels)


def picture_in(data: bytes, most_pixels: int = DEFAULT_PIXELS) -> Image.Image:
    """Opens the picture that a file's content is, as `open_picture`."""
    if len(data) > MOST_BYTES * most_pixels + 2**20:
        raise UnreadableImage("too many bytes", "image_too_large")
    return _opened(io.BytesIO(data), most_pixels)


def _opened(file: Path | io.BytesIO, most_pixels: int) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage(f"neither {', '.join(FORMATS[:-1])} nor {FORMATS[-1]}") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too many pixels", "image_too_large") from None
    require_pixels(*image.size, most_pixels)
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(ExifTags.Base.TileWidth), tags.get(ExifTags.Base.TileLength)
    if width and height:
        require_pixels(width, height, most_pixels)  # what libtiff decodes at once
    return image


def _to_gray(image: Image.Image) -> Image.Image:
    """Converts to 8-bit gray. Depth comes from the file's format, not from its contents, so that absolute
    intensity survives: 16-bit samples are divided by 257, whatever range the picture uses.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("L")
    width, height = image.size
    gray, step = np.empty((height, width), np.uint8), max(1, _BAND // width)
    for top in range(0, height, step):
        samples = np.asarray(image.crop((0, top, width, min(top + step, height)))).astype(np.float64)
        if image.mode == "F" or samples.min() < 0 or samples.max() > 65535:
            raise UnreadableImage(f"samples of mode {image.mode} are not 8-bit or 16-bit gray")
        gray[top : top + step] = np.round(samples / 257)
    return Image.fromarray(gray)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Converts to 8-bit gray, or to 8-bit colour, where a gray picture is the same in each channel."""
    if channels == 1 or image.mode.startswith(("I", "F")):
        image = _to_gray(image)
    return image if channels == 1 else image.convert("RGB")


def gray(pixels: np.ndarray) -> np.ndarray:
    """The gray picture uint8 (H, W) of one of one or three channels, uint8 (H, W, C)."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else np.asarray(Image.fromarray(pixels).convert("L"))


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Pixels, uint8 (H, W, C) of one or three channels, for Pillow."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _open(path: Path, most_pixels: int) -> Image.Image:
    if path.suffix.lower() != ".dcm":
        return open_picture(path, most_pixels)
    from jaxcxr.data import dicom

    return dicom.load(path, most_pixels)


def load_square(
    picture: Path | Image.Image,
    size: int,
    intensity: str = "stored",
    most_pixels: int = DEFAULT_PIXELS,
    channels: int = 1,
) -> np.ndarray:
    """Reads an image file as a (size, size, channels) uint8 array, padded with black to a centred square.

    The longer side is resized to `size` by an antialiased Lanczos filter; JPEGs are first reduced by the
    decoder (DCT scaling) to no less than that, which makes full-size radiographs cheap to read.
    Orientation tags are obeyed. A file that ends in .dcm is read by `dicom.load`.

    Args:
      picture: the file, or a picture in memory.
      size: height and width in pixels.
      intensity: "stored"; "equalize" spreads the gray levels evenly; "percentile" stretches them so that the
        lowest and the highest 0.5 % become black and white.
      most_pixels: that the picture may have; what its header says is checked before a pixel is decoded.
      channels: 1, gray, or 3, in colour, which is for "stored" intensities.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableImage: it is empty, truncated, too large or not a gray or colour picture of one of `FORMATS`.
      UserError: it is DICOM, and pydicom is not installed.
    """
    try:
        opened = contextlib.nullcontext(picture) if isinstance(picture, Image.Image) else _open(picture, most_pixels)
        with opened as image:
            require_pixels(*image.size, most_pixels)
            image.draft("L" if channels == 1 else "RGB", _fit(image.size, size))
            turned = image.getexif().get(ExifTags.Base.Orientation)
            whole = _converted(image, channels)
        whole = _upright(whole, turned)  # the smaller picture is turned
        inner = whole.resize(_fit(whole.size, size), Image.Resampling.LANCZOS)
    except (FileNotFoundError, MemoryError, UnreadableImage, UserError):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(type(error).__name__) from error
    if intensity == "equalize":
        inner = ImageOps.equalize(inner)
    elif intensity == "percentile":
        inner = ImageOps.autocontrast(inner, cutoff=0.5)
    square = np.zeros((size, size, channels), np.uint8)
    top, left = (size - inner.height) // 2, (size - inner.width) // 2
    pixels = np.asarray(inner).reshape(inner.height, inner.width, channels)
    square[top : top + inner.height, left : left + inner.width] = pixels
    return square


def load_gray(picture: Path, most_pixels: int = DEFAULT_PIXELS) -> np.ndarray:
    """Reads an image file as it is, uint8 (H, W): orientation tags are obeyed, nothing is resized.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableImage: as for `load_square`.
      UserError: it is DICOM, and pydicom is not installed.
    """
    try:
        with _open(picture, most_pixels) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation)
            return np.asarray(_upright(_to_gray(image), turned))
    except (FileNotFoundError, MemoryError, UnreadableImage, UserError):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(type(error).__name__) from error


def load_colour(picture: Path | Image.Image, most_pixels: int = DEFAULT_PIXELS) -> np.ndarray:
    """Reads an image file or a picture in memory as it is, uint8 (H, W, 3); a gray one is the same in each channel.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableImage: it cannot be decoded, is too large, or is of more than 8 bits.
    """
    try:
        if isinstance(picture, Image.Image):
            require_pixels(*picture.size, most_pixels)
            image = picture
        else:
            image = open_picture(picture, most_pixels)
        if image.mode.startswith(("I", "F")):
            raise UnreadableImage("is of more than 8 bits a channel")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (FileNotFoundError, MemoryError, UnreadableImage):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(type(error).__name__) from error


def _upright(picture: Image.Image, turned: int | None) -> Image.Image:
    """The picture turned as the orientation tag `turned` says."""
    if turned is None:
        return picture
    picture.getexif()[ExifTags.Base.Orientation] = turned
    return ImageOps.exif_transpose(picture)


def picture_size(picture: Path | Image.Image, most_pixels: int = DEFAULT_PIXELS) -> tuple[int, int]:
    """(width, height) of a picture as it is to be seen; of a file only the header is read, unless it is DICOM.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableImage: as for `load_square`.
      UserError: it is DICOM, and pydicom is not installed.
    """
    try:
        image = picture if isinstance(picture, Image.Image) else _open(picture, most_pixels)
        width, height = image.size
        lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except (FileNotFoundError, MemoryError, UnreadableImage, UserError):
        raise
    except Exception as error:
        raise UnreadableImage(type(error).__name__) from error
    return (height, width) if lies else (width, height)


def _fit(wh: tuple[int, int], side: int) -> tuple[int, int]:
    """Scales a (width, height) so that the longer is `side` and neither is below 1."""
    scale = side / max(wh)
    return max(1, round(wh[0] * scale)), max(1, round(wh[1] * scale))


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a (height, width, 1 or 3) uint8 array as a PNG, gray or in colour."""
    height, width, channels = image.shape
    # Each row less the one above, and of repetitions runs alone. Pillow tries five filters a row and settles on ones
    # that save a tenth of the bytes but take twice the time to write and half as much again to read.
    rows = np.full((height, 1 + width * channels), _UP, np.uint8)
    rows[:, 1:] = np.diff(image.reshape(height, -1), axis=0, prepend=np.uint8(0))
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    chunks = (
        (b"IHDR", struct.pack(">2I", width, height) + _HEADERS[channels]),
        (b"IDAT", packer.compress(rows) + packer.flush()),
        (b"IEND", b""),
    )
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def decode_png(data: bytes) -> np.ndarray:
    """Decodes a PNG of `encode_png` to a (height, width, channels) uint8 array; also another one, in more time."""
    (length,) = struct.unpack(">I", data[33:37])
    end = 41 + length
    channels = next((channels for channels, header in _HEADERS.items() if data[24:29] == header), 0)
    if channels and (data[37:41], data[end + 8 : end + 12]) == (b"IDAT", b"IEND"):
        width, height = struct.unpack(">2I", data[16:24])
        rows = np.frombuffer(zlib.decompress(data[41:end]), np.uint8).reshape(height, 1 + width * channels)
        if (rows[:, 0] == _UP).all():
            image = np.add.accumulate(rows[:, 1:], axis=0, dtype=np.uint8)
            return image.reshape(height, width, channels)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.asarray(picture).reshape(picture.height, picture.width, -1)
