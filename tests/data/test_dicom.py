"""DICOM files: what a viewer would show of them, what is refused, and the DICOM release of MIMIC-CXR.

The expected values are the formulas of PS3.3 C.11, written here a second time.
"""

import json
import logging
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import mimic_tree, picture, rows, small_config

from jaxcxr.data import dicom, images
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

NAME = "Verysecret^Jane"
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits
WINDOWS = ((2048, 4096), (2048, 1), (300.5, 77), (-5, 3000), (1000, 2.5))


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


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.2.1, line by line, for an output of 0 to 255."""
    x = x.astype(np.float64)
    low, high = c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ramp = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    return np.where(x <= low, 0, np.where(x > high, 255, ramp))


def linear_exact(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.3.2."""
    x = x.astype(np.float64)
    return np.where(x <= c - w / 2, 0, np.where(x > c + w / 2, 255, ((x - c) / w + 0.5) * 255))


def sigmoid(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.3.1."""
    with np.errstate(over="ignore"):
        return 255 / (1 + np.exp(-4 * (x.astype(np.float64) - c) / w))


def test_without_a_window_the_range_of_the_samples_is_stretched(tmp_path):
    samples = np.array([[10, 60], [110, 210]], np.uint8)
    assert shown(tmp_path, samples).tolist() == [[0, 64], [128, 255]]
    full = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(shown(tmp_path, full), full), "samples of every value stay"
    assert not shown(tmp_path, np.full((4, 4), 77, np.uint8)).any()


@pytest.mark.parametrize(("centre", "width"), WINDOWS)
def test_linear_window(tmp_path, centre, width):
    for attributes in ({}, {"VOILUTFunction": "LINEAR"}):
        out = shown(tmp_path, RAMP, 12, WindowCenter=centre, WindowWidth=width, **attributes)
        assert abs(out - linear(RAMP, centre, width)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "formula"), [("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)])
@pytest.mark.parametrize(("centre", "width"), WINDOWS)
def test_other_windows(tmp_path, name, formula, centre, width):
    out = shown(tmp_path, RAMP, 12, WindowCenter=centre, WindowWidth=width, VOILUTFunction=name)
    assert abs(out - formula(RAMP, centre, width)).max() <= 0.5 + 1e-6


def test_a_window_keeps_absolute_intensity(tmp_path):
    dim = np.array([[1000, 1100]], np.uint16)
    out = shown(tmp_path, dim, 12, WindowCenter=2048, WindowWidth=4096)
    assert out.tolist() == [[round(1000 / 4095 * 255), round(1100 / 4095 * 255)]]


def test_the_first_of_several_windows_is_used(tmp_path):
    out = shown(tmp_path, RAMP, 12, WindowCenter=[500, 2000], WindowWidth=[600, 9], VOILUTFunction="LINEAR")
    assert abs(out - linear(RAMP, 500, 600)).max() <= 0.5 + 1e-6


def test_signed_samples_are_rescaled_before_the_window(tmp_path):
    samples = np.linspace(-32768, 32767, 4096).astype(np.int16).reshape(64, 64)
    for slope, intercept in ((0.5, -1024), (-2, 30)):
        scale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        out = shown(tmp_path, samples, WindowCenter=-300, WindowWidth=9000, **scale)
        expected = linear(samples.astype(float) * slope + intercept, -300, 9000)
        assert abs(out - expected).max() <= 0.5 + 1e-6
    stretched = shown(tmp_path, samples, RescaleSlope=-2, RescaleIntercept=30)
    assert stretched[0, 0] == 255
    assert stretched[-1, -1] == 0


def test_bits_above_those_stored_do_not_count(tmp_path):
    overlay = RAMP | np.uint16(0x8000)
    windowed = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(shown(tmp_path, overlay, 12, **windowed), shown(tmp_path, RAMP, 12, **windowed))
    negative = (RAMP.astype(np.int16) - 2048) & np.int16(0x0FFF)  # of 12 bits, their sign not extended
    out = shown(tmp_path, negative, 12, WindowCenter=0, WindowWidth=4096)
    assert abs(out - linear(RAMP.astype(int) - 2048, 0, 4096)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("attributes", [{}, {"WindowCenter": 1000, "WindowWidth": 2000}])
def test_monochrome1_is_inverted(tmp_path, attributes):
    plain = shown(tmp_path, RAMP, 12, **attributes)
    out = shown(tmp_path, RAMP, 12, PhotometricInterpretation="MONOCHROME1", **attributes)
    assert plain[0, 0] == 0
    assert np.array_equal(out, 255 - plain)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_voi_lut_goes_before_a_window_and_by_its_own_range(tmp_path, vr, syntax):
    entries = (np.sqrt(np.arange(1000) / 999) * 900).astype("<u2")  # of 10 bits, which reach 1023
    window = {"WindowCenter": 5, "WindowWidth": 5}
    out = shown(tmp_path, RAMP, 12, syntax=syntax, VOILUTSequence=lut(500, entries, 10, vr), **window)
    expected = entries[np.clip(RAMP.astype(int) - 500, 0, 999)] / 1023 * 255
    assert abs(out - expected).max() <= 0.5 + 1e-6


def test_voi_lut_of_8_bits_packed_or_padded_and_of_a_negative_first_value(tmp_path):
    samples = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)
    entries = (np.arange(400) * 255 // 399).astype(np.uint8)
    expected = entries[np.clip(samples.astype(int) + 200, 0, 399)]
    for data in (entries, entries.astype("<u2")):
        sequence = lut(-200, data, 8, "OW")
        assert np.array_equal(shown(tmp_path, samples, VOILUTSequence=sequence), expected)


def test_modality_lut_goes_before_the_window(tmp_path):
    entries = (np.arange(4096)[::-1] * 3).astype(np.uint16)
    sequence = lut(0, entries, 16, ModalityLUTType="US")
    out = shown(tmp_path, RAMP, 12, ModalityLUTSequence=sequence, WindowCenter=5000, WindowWidth=6000)
    assert abs(out - linear(entries[RAMP], 5000, 6000)).max() <= 0.5 + 1e-6


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


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 16)])
def test_compressed_files_show_what_the_uncompressed_ones_do(tmp_path, syntax, kind, bits):
    noise = np.random.default_rng(0).integers(0, 2**bits, (50, 70)).astype(kind)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    path = save(tmp_path / "x.dcm", noise, bits, **window)
    plain = np.asarray(dicom.load(path))
    compress(path, syntax)
    assert np.array_equal(np.asarray(dicom.load(path)), plain)
    assert len(np.unique(plain)) > 100


def test_big_endian_files_show_what_little_endian_ones_do(tmp_path):
    entries = (np.arange(4096) * 4).astype(">u2")
    plain = shown(tmp_path, RAMP, 12, VOILUTSequence=lut(0, entries, 14, "US"))
    big = shown(tmp_path, RAMP, 12, syntax=ExplicitVRBigEndian, VOILUTSequence=lut(0, entries, 14, "OW"))
    assert np.array_equal(big, plain)


def test_a_dcm_file_is_resized_and_padded_like_any_other(tmp_path):
    samples = picture(3)
    Image.fromarray(samples).save(tmp_path / "x.png")
    window = {"WindowCenter": 128, "WindowWidth": 256}
    for name in ("x.dcm", "X.DCM"):
        save(tmp_path / name, samples, **window)
        for intensity in ("stored", "equalize", "percentile"):
            expected = images.load_square(tmp_path / "x.png", 16, intensity)
            assert np.array_equal(images.load_square(tmp_path / name, 16, intensity), expected)


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


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_shown_is_unreadable(tmp_path, fault):
    change, reason = FAULTS[fault]
    write_fault(tmp_path / "x.dcm", change)
    with pytest.raises(images.UnreadableImage) as caught:
        images.load_square(tmp_path / "x.dcm", 16)
    assert str(caught.value) == reason


def test_broken_files_are_unreadable(tmp_path):
    for path, reason in write_broken_files(tmp_path).items():
        with pytest.raises(images.UnreadableImage) as caught:
            images.load_square(path, 16)
        assert str(caught.value) == reason
    with pytest.raises(FileNotFoundError):
        images.load_square(tmp_path / "absent.dcm", 16)


def test_absurd_rows_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: pytest.fail("decoded")))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(images.UnreadableImage, match="^too many pixels$"):
        dicom.load(save(tmp_path / "x.dcm", NOISE, 12))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_random_damage_shows_something_or_is_unreadable(tmp_path, syntax, capfd):
    path = save(tmp_path / "x.dcm", NOISE, 12)
    compress(path, syntax)
    reasons = set()
    whole, random = path.read_bytes(), np.random.default_rng(2)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(132, len(whole) if random.random() < 0.5 else 900, 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert images.load_square(path, 16).shape == (16, 16, 1)
        except images.UnreadableImage as error:
            reasons.add(str(error))
    told = capfd.readouterr()
    assert reasons
    assert "ecret" not in told.out + told.err + "".join(reasons)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'jaxcxr\[dicom\]'"):
        images.load_square(tmp_path / "x.dcm", 16)


def dicom_tree(root: Path, members) -> Path:
    """The layout of the two releases: JPG's tables without images, DICOMs beside the reports."""
    mimic_tree(root, members)
    shutil.rmtree(root / "mimic-cxr-jpg/2.1.0/files")
    for row in members:
        path = root / "mimic-cxr/2.1.0" / row.folder / f"s{row.study}" / f"{row.dicom}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        inverted = 4095 - 16 * picture(row.number).astype(np.uint16)
        window = {"WindowCenter": 2048, "WindowWidth": 4096}
        save(path, inverted, 12, PhotometricInterpretation="MONOCHROME1", **window)
    return root


def stored(out: Path) -> dict[str, np.ndarray]:
    return {
        record["id"].decode(): images.decode_png(record["image"])
        for split in ("train", "validate", "test")
        for record in open_split(out, split)
    }


def test_the_dicom_release_becomes_the_records_of_the_jpgs(tmp_path):
    members = rows()
    tree, jpg = dicom_tree(tmp_path / "raw", members), mimic_tree(tmp_path / "jpg", members)
    for table in (tree / "mimic-cxr-jpg/2.1.0").iterdir():
        shutil.copy(table, jpg / "mimic-cxr-jpg/2.1.0")
    summary = prepare(small_config(), tree, tmp_path / "out")
    assert summary.splits == {"train": 12, "validate": 4, "test": 4}
    assert summary.bad == {}
    prepare(small_config(), jpg, tmp_path / "from_jpg")
    pictures, expected = stored(tmp_path / "out"), stored(tmp_path / "from_jpg")
    assert pictures.keys() == expected.keys()
    for name, image in pictures.items():
        assert abs(image[2:-2, 4:-4].astype(int) - expected[name][2:-2, 4:-4]).max() <= 3
    with pytest.raises(UserError, match="from another source"):
        prepare(small_config(), tree, tmp_path / "from_jpg")


def test_tables_may_lie_beside_the_dicoms_or_above_them(tmp_path):
    members = rows()
    tree = dicom_tree(tmp_path / "raw", members)
    release = tree / "mimic-cxr/2.1.0"
    for table in (tree / "mimic-cxr-jpg/2.1.0").iterdir():
        shutil.copy(table, release)
        shutil.copy(table, tree)
    shutil.rmtree(tree / "mimic-cxr-jpg")
    (release / members[0].folder / f"s{members[0].study}" / f"{members[0].dicom}.dcm").unlink()
    for number, folder in enumerate((release, tree)):
        summary = prepare(small_config(), folder, tmp_path / f"out{number}")
        assert summary.source == "MimicCxr, DICOM"
        assert summary.bad == {"missing_image": 1}
        assert sum(summary.splits.values()) == 19


def test_jpgs_are_taken_where_both_releases_are_there(tmp_path):
    members = rows()
    tree = dicom_tree(tmp_path / "raw", members)
    mimic_tree(tree, members)
    assert prepare(small_config(), tree, tmp_path / "out").source == "MimicCxr"


def test_the_release_that_has_images_is_found(tmp_path):
    members = rows()
    tree = dicom_tree(tmp_path / "raw", members)
    (tree / "mimic-cxr/2.1.0").rename(tree / "mimic-cxr/2.0.0")
    for row in members:
        text = tree / "mimic-cxr/2.1.0" / row.folder / f"s{row.study}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tree / "mimic-cxr/2.0.0" / row.folder / text.name, text)
    assert sum(prepare(small_config(), tree, tmp_path / "out").splits.values()) == 20


def test_tables_without_images_stop(tmp_path):
    tree = dicom_tree(tmp_path / "raw", rows())
    shutil.rmtree(tree / "mimic-cxr")
    with pytest.raises(
        UserError, match=r"mimic-cxr-jpg/2\.1\.0: no files/ with JPGs, nor DICOMs in mimic-cxr/\*/files/"
    ):
        prepare(small_config(), tree, tmp_path / "out")


def test_bad_dicoms_are_listed_with_their_reason_and_nothing_of_their_header(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    members = rows(train=40)
    tree = dicom_tree(tmp_path / "raw", members)
    reasons: dict[str, str] = {}
    broken = write_broken_files(tmp_path)
    for row, fault in zip(members, [*FAULTS, *broken], strict=False):
        path = tree / "mimic-cxr/2.1.0" / row.folder / f"s{row.study}" / f"{row.dicom}.dcm"
        if fault in FAULTS:
            change, reason = FAULTS[fault]
            write_fault(path, change)
        else:
            reason = broken[fault]
            shutil.copy(fault, path)
        reasons[row.dicom] = f"{path.name}: {reason}"
    caplog.clear()
    summary = prepare(small_config(max_bad_share=0.5), tree, tmp_path / "out", workers=1)
    assert summary.bad == {"unreadable_image": len(reasons)}
    assert sum(summary.splits.values()) == 48 - len(reasons)
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {line["id"]: line["detail"] for line in listed} == reasons
    told = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for text in (told.out, told.err, caplog.text, written.decode("latin-1")):
        assert "ecret" not in text.lower()
