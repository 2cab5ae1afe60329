"""DICOM radiographs to 8-bit gray pictures, by the file's own word on how it is to be shown (PS3.3 C.11).

Nothing that is raised here holds a value of the header, which may be a patient's name.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from jaxcxr.data.images import MOST_BYTES, UnreadableImage, require_bytes, require_pixels
from jaxcxr.data.settings import DEFAULT_PIXELS
from jaxcxr.errors import UserError

_MOST_VALUE = 2**20  # bytes of an attribute that is read; a lookup table has at most 128 KiB
_READ = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "BitsAllocated", "Rows", "Columns"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "ModalityLUTSequence", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "LUTDescriptor", "LUTData"),
)
_BAND = 2**20  # samples that are looked up at once
_SIZE = "its frame is of another size than the header says"


def load(path: Path, most_pixels: int = DEFAULT_PIXELS) -> Image.Image:
    """Reads a DICOM file of one gray frame as a picture of mode "L".

    Samples of 8 or 16 bits, signed or not, go through the modality LUT or the rescale, then through the first VOI LUT
    or else the first window, whose own range becomes 0..255, so that absolute intensity survives. Where the header has
    neither, 0 and 255 are the lowest and the highest value of the picture. MONOCHROME1 is inverted.

    Raises:
      UserError: pydicom is not installed.
      OSError: the file cannot be opened.
      UnreadableImage: it is damaged, not DICOM, without pixels, in colour, of several frames, larger than
        `most_pixels`, or compressed in a way that no plug-in of pydicom decodes.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UserError("pydicom is not installed: pip install 'jaxcxr[dicom]'") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it quotes the header, and so do its warnings
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            require_bytes(path, most_pixels)
            meta = pydicom.filereader.read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
                header = _inflated(file, meta, MOST_BYTES * most_pixels)
            else:
                header = pydicom.dcmread(file)
            _require_short(header)
            samples = _samples(header, most_pixels)
            # Of a radiograph's millions of samples few thousands differ: what becomes of each is computed once.
            low, high = int(samples.min()), int(samples.max())
            shades = 255 * _shades(header, np.arange(low, high + 1, dtype=np.float64))
            if not np.isfinite(shades).all():
                raise UnreadableImage("a number of its header is out of range")
            table = np.round(shades).astype(np.uint8)
            if header.PhotometricInterpretation == "MONOCHROME1":
                table = 255 - table
            picture = np.empty(samples.shape, np.uint8)
            step = max(1, _BAND // samples.shape[1])
            for top in range(0, len(samples), step):
                picture[top : top + step] = table[samples[top : top + step].astype(np.int32) - low]
            return Image.fromarray(picture)
        except (UnreadableImage, MemoryError):
            raise
        except pydicom.errors.InvalidDicomError:
            raise UnreadableImage("not a DICOM file") from None
        # A damaged header makes pydicom and its plug-ins raise anything, with values of the header in it.
        except Exception as error:
            raise UnreadableImage(f"damaged ({type(error).__name__})") from None


def _inflated(file: IO[bytes], meta: Any, most: int) -> Any:
    """A data set of the deflated transfer syntax, of which pydicom would inflate any number of bytes."""
    from pydicom.filereader import read_dataset

    file.seek(128 + 4 + 12 + meta.FileMetaInformationGroupLength)  # preamble, DICM, the group length itself
    packer = zlib.decompressobj(-zlib.MAX_WBITS)
    data = packer.decompress(file.read(), most)
    if packer.unconsumed_tail:
        raise UnreadableImage("too many bytes", "image_too_large")
    header: Any = read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
    header.file_meta = meta
    return header


def _require_short(dataset: Any) -> None:
    """Raises UnreadableImage if one of the attributes that are read is absurdly long, before it is parsed."""
    for name in _READ:
        if name in dataset:
            value = dataset.get_item(name).value
            if isinstance(value, bytes) and len(value) > _MOST_VALUE:
                raise UnreadableImage("an attribute is too long")


def _samples(header: Any, most_pixels: int) -> np.ndarray:
    """The stored samples, (height, width) of 8-bit or 16-bit integers; what is absurd is refused before decoding."""
    from pydicom.pixels import get_decoder, pixel_array

    if "PixelData" not in header:
        raise UnreadableImage("no pixels")
    if header.SamplesPerPixel != 1 or header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImage("not gray")
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise UnreadableImage("several frames")
    if header.BitsAllocated not in (8, 16):
        raise UnreadableImage("samples are not of 8 or 16 bits")
    count = header.Rows * header.Columns
    require_pixels(header.Columns, header.Rows, most_pixels)
    syntax = header.file_meta.TransferSyntaxUID
    try:
        # Without gdcm: a damaged file makes it end the process, and with it the whole run.
        plugins = [name for name in get_decoder(syntax).available_plugins if name != "gdcm"]
    except NotImplementedError:
        plugins = []
    if syntax.is_compressed and not plugins:
        raise UnreadableImage("no decoder for its transfer syntax: pip install 'jaxcxr[dicom]' pylibjpeg-libjpeg")
    length = count * header.BitsAllocated // 8
    # A value is padded to an even length. pydicom would drop any excess, but then the rows may be of another width.
    if not syntax.is_compressed and len(header.PixelData) not in (length, length + length % 2):
        raise UnreadableImage("pixels are not as many as the header says")
    if syntax.is_compressed:
        _check_frame(header)
    return pixel_array(header, decoding_plugin=plugins[0] if plugins else "")


def _check_frame(header: Any) -> None:
    """Raises UnreadableImage if what is compressed says, or in RLE is, another size than the header's."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # one frame needs none
        if name in header:
            delattr(header, name)
    frame = get_frame(header.PixelData, 0, number_of_frames=1)
    if header.file_meta.TransferSyntaxUID == RLELossless:
        _check_rle(frame, header.Rows * header.Columns, header.BitsAllocated // 8)
    elif (_codestream if frame.startswith(b"\xff\x4f\xff\x51") else _jpeg)(frame) != (header.Rows, header.Columns, 1):
        raise UnreadableImage(_SIZE)


def _codestream(frame: bytes) -> tuple[int, int, int]:
    """Height, width and components of JPEG 2000 (ITU-T T.800, A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    return bottom - top, right - left, *struct.unpack_from(">H", frame, 40)


def _jpeg(frame: bytes) -> tuple[int, int, int]:
    """Height, width and components of JPEG and JPEG-LS (ITU-T T.81, B.2; T.87, C.2)."""
    at = 2
    if not frame.startswith(b"\xff\xd8"):
        raise UnreadableImage(_SIZE)
    while True:
        mark, kind, length = struct.unpack_from(">2BH", frame, at)
        if mark != 0xFF:
            raise UnreadableImage(_SIZE)
        if kind in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7):
            height, width, components = struct.unpack_from(">2HB", frame, at + 5)
            return height, width, components
        # Tables, applications' own and comments. In a hierarchy of frames a later one may be larger.
        if kind not in (0xC4, 0xCC, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)):
            raise UnreadableImage(_SIZE)
        at += 2 + length


def _check_rle(frame: bytes, pixels: int, bytes_per_sample: int) -> None:
    """Raises UnreadableImage if a segment grows to more than its plane (PS3.5 G.3), at once rather than decoded."""
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != bytes_per_sample:
        raise UnreadableImage(_SIZE)
    for first, last in zip(offsets[:count], [*offsets[1:count], len(frame)], strict=True):
        at, length = first, 0
        while at < last and length <= pixels + 128:  # a segment may be padded
            header = frame[at]
            length += header + 1 if header < 128 else 257 - header if header > 128 else 0
            at += header + 2 if header < 128 else 2 if header > 128 else 1
        if length > pixels + 128:
            raise UnreadableImage(_SIZE)


def _shades(header: Any, levels: np.ndarray) -> np.ndarray:
    """What becomes of stored values on their way to a screen, 0 to 1; `levels` are all those from lowest to highest."""
    if header.get("ModalityLUTSequence"):
        values, _ = _look_up(header, header.ModalityLUTSequence[0], levels)
    else:
        slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
        values = levels * (1 if slope is None else slope) + (intercept or 0)
    if header.get("VOILUTSequence"):
        values, most = _look_up(header, header.VOILUTSequence[0], values)
        return np.minimum(values / most, 1)
    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    if centre is not None and width is not None:
        return _window(values, centre, width, header.get("VOILUTFunction") or "LINEAR")
    return (values - values.min()) / (np.ptp(values) or 1)


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, with an output of 0 to 1."""
    if function == "SIGMOID" and width > 0:
        return (1 + np.tanh(2 * (values - centre) / width)) / 2  # 1 / (1 + exp(-4 …)), without its overflow
    if function == "LINEAR" and width >= 1:
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT" or not width > 0:
        raise UnreadableImage("its window has no width or an unknown function")
    return np.clip((values - centre + width / 2) / max(width, 1e-9), 0, 1)  # no width left: a step


def _look_up(header: Any, item: Any, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Puts values through the table of a LUT sequence's item; values beyond its ends take the entry at that end.

    Returns the entries and the most that one could be.
    """
    _require_short(item)
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 2**16 or 2**16  # 65,536 entries are written as 0, and 32,768 and more may be read as negative
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        # Entries of 8 bits are packed by some and padded to 16 by others; the length tells.
        entries = np.frombuffer(entries, f"{order}u2" if len(entries) >= 2 * count else "u1")
    entries = np.atleast_1d(entries)[:count]
    if len(entries) < count:
        raise UnreadableImage("a lookup table is shorter than it says")
    places = np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)
    return entries[places].astype(np.float64), 2**bits - 1


def _number(header: Any, name: str) -> float | None:
    """An attribute's value, the first of several; None where it is absent or empty."""
    value = header.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)
