"""Pictures and reports of raw data, mutated: each is read or rejected, with nothing of its content in the reason."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcxr.data import images, reports
from jaxcxr.data.mimic_cxr import ReportStore
from jaxcxr.data.openi import read_report
from jaxcxr.data.records import Rejected
from tests.hostile.mutations import byte_variants

SECRET = "Verysecret"


def encoded(form: str, mode: str) -> bytes:
    gray = np.add.outer(np.arange(24), np.arange(16)).astype(np.uint8)
    picture = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, SECRET
    picture.save(buffer, form, exif=exif)
    return buffer.getvalue()


PICTURES = [
    ("PNG", "L"),
    ("PNG", "I;16"),
    ("JPEG", "L"),
    ("JPEG", "RGB"),
    ("TIFF", "L"),
    ("TIFF", "I;16"),
    ("BMP", "L"),
]


def read_or_rejected(function, *args, **kwargs):
    """What a reader gives, or the error by which a row is left out, which tells nothing of the content."""
    try:
        return function(*args, **kwargs)
    except (Rejected, images.UnreadableImage) as error:
        told = error
    said = f"{told.reason} {told} {getattr(told, 'detail', '')}"
    assert len(said) < 200
    assert SECRET not in said
    return told


def shown(path):
    out = read_or_rejected(images.load_square, path, 16, most_pixels=4096)
    if isinstance(out, images.UnreadableImage):
        assert out.reason in ("unreadable_image", "image_too_large")
    else:
        assert (out.shape, out.dtype) == ((16, 16, 1), np.uint8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300)
@given(st.sampled_from([encoded(*kind) for kind in [*PICTURES, ("BMP", "L"), ("WEBP", "RGB")]]).flatmap(byte_variants))
def test_a_mutated_picture_is_shown_or_unreadable(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    shown(tmp_path / "x.png")


def dicom_file() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    made = pydicom.dataset.Dataset()
    made.file_meta, made.PatientName, made.SamplesPerPixel = meta, SECRET, 1
    made.PhotometricInterpretation, made.Rows, made.Columns = "MONOCHROME2", 16, 16
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth, made.RescaleSlope = 100, 200, 1
    made.PixelData = np.arange(256, dtype="<u2").tobytes()
    made["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deflated_dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    made = pydicom.dcmread(io.BytesIO(dicom_file()))
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [dicom_file, deflated_dicom])
def test_a_mutated_dicom_is_shown_or_unreadable(tmp_path, make):
    path, whole = tmp_path / "x.dcm", make()
    path.write_bytes(whole)
    expected = images.load_square(path, 16, most_pixels=4096)
    assert np.ptp(expected) > 200

    @settings(max_examples=200)
    @given(byte_variants(whole))
    def mutated(data):
        path.write_bytes(data)
        shown(path)

    mutated()


REPORT = (
    f" FINAL REPORT\n EXAMINATION: CHEST\n \n FINDINGS:  Clear {SECRET}.\n \n IMPRESSION:  ___ No change.\n".encode()
)
XML = (
    f'<?xml version="1.0"?><r><uId id="CXR1"/><AbstractText Label="FINDINGS">{SECRET}</AbstractText>'
    '<parentImage id="CXR1_1_IM-1"/><MeSH><major>normal</major></MeSH></r>'
).encode()


@given(byte_variants(REPORT))
def test_a_mutated_report_is_read_or_rejected(tmp_path, data):
    (tmp_path / "s1.txt").write_bytes(data)
    text = read_or_rejected(ReportStore((tmp_path,), 4096).read, "s1.txt")
    if isinstance(text, str):
        reports.folded(text)


@given(byte_variants(XML))
def test_a_mutated_report_in_xml_is_read_or_rejected(tmp_path, data):
    (tmp_path / "1.xml").write_bytes(data)
    read_or_rejected(read_report, tmp_path / "1.xml")


def zip_of(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("s1.txt", REPORT * 4)
    return buffer.getvalue()


@given(st.sampled_from([zip_of(zipfile.ZIP_DEFLATED), zip_of(zipfile.ZIP_STORED)]).flatmap(byte_variants))
def test_a_mutated_zip_of_reports_is_read_or_rejected(tmp_path, data):
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(data)
    text = read_or_rejected(ReportStore((tmp_path,), 4096).read, "s1.txt")
    assert not isinstance(text, str) or len(text) <= 4096


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_a_zip_are_not_inflated(tmp_path, method):
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(zip_of(method))
    with pytest.raises(Rejected, match="unreadable_report"):
        ReportStore((tmp_path,), 4096).read("s1.txt")
