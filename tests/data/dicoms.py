"""DICOM files to test with, sound and broken."""

import struct
from pathlib import Path

import numpy as np
import pytest

from jaxcxr.data import dicom

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

NAME = "Verysecret^Jane"
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits


def dataset(samples: np.ndarray, bits: int = 0, syntax=ExplicitVRLittleEndian, **attributes) -> Dataset:
    """A radiograph of (height, width) samples; an attribute that is None is left out."""
    size = 8 * samples.dtype.itemsize
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    made = Dataset()
    made.file_meta = meta
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientName": NAME,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": samples.shape[0],
        "Columns": samples.shape[1],
        "BitsAllocated": size,
        "BitsStored": bits or size,
        "HighBit": (bits or size) - 1,
        "PixelRepresentation": int(samples.dtype.kind == "i"),
        "PixelData": samples.astype(samples.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes(),
    }
    for name, value in (values | attributes).items():
        if value is not None:
            setattr(made, name, value)
    made["PixelData"].VR = "OW"
    return made


def save(path: Path, samples: np.ndarray, bits: int = 0, **attributes) -> Path:
    dataset(samples, bits, **attributes).save_as(path, enforce_file_format=True)
    return path


def shown(tmp_path: Path, samples: np.ndarray, bits: int = 0, **attributes) -> np.ndarray:
    picture = dicom.load(save(tmp_path / "x.dcm", samples, bits, **attributes))
    assert picture.mode == "L"
    return np.asarray(picture)


def lut(first: int, entries: np.ndarray, bits: int, vr: str = "US", **values) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", vr, entries.tolist() if vr == "US" else entries.tobytes())
    for name, value in values.items():
        setattr(item, name, value)
    return Sequence([item])


def jpeg_lossless(samples: np.ndarray, bits: int) -> bytes:
    """ITU-T T.81, process 14, predictor 1; each of the 17 categories of a difference has a code of 5 bits."""
    values = samples.astype(np.int64) & (2**bits - 1)
    before = np.roll(values, 1, axis=1)
    before[1:, 0], before[0, 0] = values[:-1, 0], 2 ** (bits - 1)
    code = ""
    for difference in ((values - before + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(difference).bit_length()
        extra = difference if difference > 0 else difference + 2**size - 1
        code += f"{size:05b}" + (f"{extra:0{size}b}" if 0 < size < 16 else "")
    code += "1" * (-len(code) % 8)
    data = int(code, 2).to_bytes(len(code) // 8).replace(b"\xff", b"\xff\0")
    height, width = samples.shape
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, bits, height, width, 1) + b"\1\x11\0"
    codes = b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17] + 11 * [0]) + bytes(range(17))
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0\1\0\0"
    return b"\xff\xd8" + frame + codes + scan + data + b"\xff\xd9"


def compress(path: Path, syntax: str) -> None:
    whole = pydicom.dcmread(path)
    if syntax == JPEGLosslessSV1:
        pytest.importorskip("libjpeg")
        whole.PixelData = pydicom.encaps.encapsulate([jpeg_lossless(whole.pixel_array, whole.BitsStored)])
        whole.file_meta.TransferSyntaxUID = syntax
    else:
        if syntax == JPEG2000Lossless:
            pytest.importorskip("openjpeg")
        whole.compress(syntax, generate_instance_uid=False)
    whole.save_as(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


SYNTAXES = [RLELossless, JPEG2000Lossless, JPEGLosslessSV1]


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


NOISE = np.random.default_rng(1).integers(0, 4096, (64, 64)).astype(np.uint16)
COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Columns": 1}
LONG = NOISE.tobytes() + b"\0" * 128
FAULTS = {  # attributes, and the reason
    "no pixels": ({"PixelData": NOISE.tobytes(), "gone": ["PixelData"]}, "no pixels"),
    "short": ({"PixelData": NOISE.tobytes()[:-100]}, "pixels are not as many as the header says"),
    "long": ({"PixelData": LONG}, "pixels are not as many as the header says"),
    "absurd rows": ({"Rows": 65535, "Columns": 65535}, "too many pixels"),
    "no rows": ({"gone": ["Rows"]}, "damaged (AttributeError)"),
    "colour": (COLOUR, "not gray"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "not gray"),
    "several frames": ({"NumberOfFrames": 2}, "several frames"),
    "32 bits": ({"BitsAllocated": 32}, "samples are not of 8 or 16 bits"),
    "empty window": ({"WindowCenter": 1, "WindowWidth": 0}, "its window has no width or an unknown function"),
    "odd function": (
        {"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "VERYSECRET"},
        "its window has no width or an unknown function",
    ),
    "no number": ({"RescaleSlope": float("nan")}, "a number of its header is out of range"),
    "short table": (
        {"VOILUTSequence": lut(0, np.zeros(9, "<u2"), 16, LUTDescriptor=[10, 0, 16])},
        "a lookup table is shorter than it says",
    ),
}


def write_fault(path: Path, change: dict) -> None:
    change = dict(change)
    gone = change.pop("gone", [])
    made = dataset(NOISE, 12, **change)
    for name in gone:
        delattr(made, name)
    made.save_as(path, enforce_file_format=True)


def write_broken_files(folder: Path) -> dict[Path, str]:
    """Files that are broken in another way than by one attribute, with the reason for each."""
    truncated = save(folder / "truncated.dcm", NOISE, 12)
    cut(truncated, 0.6)
    in_header = save(folder / "in_header.dcm", NOISE, 12)
    in_header.write_bytes(in_header.read_bytes()[:420])
    other = folder / "other.dcm"
    other.write_bytes(b"Verysecret, not DICOM at all" * 40)
    packed = save(folder / "packed.dcm", NOISE, 12)
    compress(packed, RLELossless)
    cut(packed, 0.6)
    unknown = dataset(NOISE, 12)
    unknown.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    unknown.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    unknown.save_as(folder / "unknown.dcm", enforce_file_format=True)
    return {
        truncated: "pixels are not as many as the header says",
        in_header: "no pixels",
        other: "not a DICOM file",
        packed: "no pixels",
        folder / "unknown.dcm": "no decoder for its transfer syntax: pip install 'jaxcxr[dicom]' pylibjpeg-libjpeg",
    }
