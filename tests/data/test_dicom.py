"""DICOM files: what a viewer would show of them, and what is refused.

The expected values are the formulas of PS3.3 C.11, written here a second time.
"""

import sys

import numpy as np
import pytest
from dicoms import (
    FAULTS,
    NOISE,
    RAMP,
    SYNTAXES,
    compress,
    lut,
    save,
    shown,
    write_broken_files,
    write_fault,
)
from PIL import Image
from trees import picture

from jaxcxr.data import dicom, images
from jaxcxr.errors import UserError

pydicom = pytest.importorskip("pydicom")
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

WINDOWS = ((2048, 4096), (2048, 1), (300.5, 77), (-5, 3000), (1000, 2.5))


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
    with pytest.raises(images.UnreadableImage, match="^too many pixels$") as error:
        dicom.load(save(tmp_path / "x.dcm", NOISE, 12), 64 * 64 - 1)
    assert error.value.reason == "image_too_large"


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
