"""What raw data can do to the memory of `jaxcxr prepare`, under the figure that docs/data.md states."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import bombs
import numpy as np
import pytest
from PIL import Image
from trees import image_folder, mimic_tree, rows

ROOT = Path(__file__).parents[2]
# The limit is on all that a process may write to: what is decoded, and what its libraries take.
LIMITED = """
import json, resource, sys
from pathlib import Path
from jaxcxr.__main__ import main
from jaxcxr.data.prepare import prepare
from jaxcxr.data.settings import defaults
import tensorflow_datasets, pydicom, pydicom.pixels
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]) * 2**20,) * 2)
config = defaults()
config.update(json.loads(sys.argv[4]))
from jaxcxr.errors import UserError
try:
    prepare(config, Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
except UserError as error:
    sys.exit(f"refused: {error}")
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


def stated_mebibytes() -> int:
    """The figure of docs/data.md."""
    (found,) = re.findall(r"a process stays\s+below ([\d.]+) GiB", (ROOT / "docs/data.md").read_text())
    return int(float(found) * 1024)


def limited(source: Path, out: Path, **settings):
    config = json.dumps({"size": 16, "tokenizer_vocab": 600, "max_bad_share": 0.9, **settings})
    argv = [sys.executable, "-c", LIMITED, str(source), str(out), str(stated_mebibytes()), config]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)


def reasons(out: Path) -> dict[int, str]:
    listed = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    return {entry["row"]: entry["reason"] for entry in listed}


def deflated_dicom(path: Path, mebibytes: int) -> None:
    """A header, then one attribute of so many zeros."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta, head = FileMetaDataset(), io.BytesIO()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    write_file_meta_info(head, meta)
    # An element of 2 GiB less 2 bytes, whose value is the stream's rest.
    element = struct.pack("<2H2sHL", 0x7FE0, 0x0010, b"OW", 0, mebibytes * bombs.ZEROS)
    first = bytes([0, *struct.pack("<2H", len(element), len(element) ^ 0xFFFF)]) + element  # a stored block
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + first + bombs.deflated(mebibytes))


def frame_larger_than_its_header(path: Path) -> None:
    """A JPEG 2000 frame that says 60,000 × 60,000 in a DICOM file that says 64 × 64."""
    from dicoms import NOISE, dataset, save
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    save(path, NOISE, 12)
    made = dataset(NOISE, 12)
    made.save_as(path, enforce_file_format=True)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    from pydicom.encaps import get_frame

    frame = bytearray(get_frame(made.PixelData, 0, number_of_frames=1))
    struct.pack_into(">2I", frame, 8, 60_000, 60_000)
    struct.pack_into(">2I", frame, 24, 60_000, 60_000)
    made.PixelData = encapsulate([bytes(frame)])
    made.save_as(path, enforce_file_format=True)


def rle_bomb(path: Path) -> None:
    """An RLE frame of 64 × 64 whose segments grow to 64 MiB each from a mebibyte."""
    from dicoms import NOISE, dataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import RLELossless

    made = dataset(NOISE, 12)
    segment = b"\x81\x00" * 2**20 * 8
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + 2 * segment
    made.PixelData = encapsulate([frame])
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = RLELossless
    made.save_as(path, enforce_file_format=True)


@pytest.mark.slow
def test_pictures_and_reports_that_grow_are_quarantined_within_the_stated_memory(tmp_path):
    pytest.importorskip("pydicom")
    members = rows(train=20, validate=2, test=2)
    tree = mimic_tree(tmp_path / "raw", members)
    jpg, texts = tree / "mimic-cxr-jpg/2.1.0", tree / "mimic-cxr/2.1.0"
    images = [jpg / row.folder / f"s{row.study}" / f"{row.dicom}.jpg" for row in members]
    bombs.png(images[0], 100_000_000, 1, 8)
    bombs.png(images[1], 13_000, 13_000, 16)
    bombs.png(images[2], 66_000, 900, 8)
    bombs.tiff(images[3], 32_768)
    with images[4].open("wb") as file:
        file.truncate(2**30)
    report = texts / members[5].folder / f"s{members[5].study}.txt"
    report.unlink()
    bombs.zipped(texts / "mimic-cxr-reports.zip", report.relative_to(texts).as_posix(), 3000)
    with (texts / members[6].folder / f"s{members[6].study}.txt").open("wb") as file:
        file.truncate(2**32)
    ended = limited(tree, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert reasons(tmp_path / "out") == {
        **dict.fromkeys(range(2, 7), "image_too_large"),
        7: "report_too_long",
        8: "report_too_long",
    }


@pytest.mark.slow
def test_dicoms_that_grow_are_quarantined_within_the_stated_memory(tmp_path):
    pytest.importorskip("pydicom")
    from test_dicom_release import dicom_tree

    members = rows(train=20, validate=2, test=2)
    tree = dicom_tree(tmp_path / "raw", members)
    bad = [tree / "mimic-cxr/2.1.0" / row.folder / f"s{row.study}" / f"{row.dicom}.dcm" for row in members]
    deflated_dicom(bad[0], 2000)
    frame_larger_than_its_header(bad[1])
    rle_bomb(bad[2])
    ended = limited(tree, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert reasons(tmp_path / "out") == {2: "image_too_large", 3: "unreadable_image", 4: "unreadable_image"}


@pytest.mark.slow
def test_the_largest_pictures_that_are_allowed_become_records_within_the_stated_memory(tmp_path):
    members = rows(train=6, validate=2, test=2)
    tree = mimic_tree(tmp_path / "raw", members)
    images = [tree / "mimic-cxr-jpg/2.1.0" / row.folder / f"s{row.study}" / f"{row.dicom}.jpg" for row in members]
    whole = Image.fromarray(np.zeros((8192, 8192), np.uint8))
    Image.fromarray(np.zeros((8192, 8192), np.uint16)).save(images[0], "PNG", compress_level=1)
    whole.convert("RGBA").save(images[1], "PNG", compress_level=1)
    whole.convert("CMYK").save(images[2], "JPEG", progressive=True)
    whole.convert("RGB").save(images[4], "WEBP", quality=1, method=0)
    Image.fromarray(np.zeros((8192, 8192), np.int32)).save(images[3], "TIFF", compression="tiff_deflate")
    ended = limited(tree, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert reasons(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["metadata", "split", "chexpert"])
def test_a_table_with_a_monstrous_line_is_an_error_that_names_it(tmp_path, name):
    tree = mimic_tree(tmp_path / "raw", rows())
    table = tree / f"mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-{name}.csv.gz"
    bombs.long_line(table, gzip.decompress(table.read_bytes()), 3000)
    ended = limited(tree, tmp_path / "out")
    assert re.search(rf"refused: \S*{name}\.csv\.gz: line 22 is longer than 1,048,576 characters", ended.stderr)


def test_lines_of_metadata_are_bounded(tmp_path):
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA"} for n in range(8)]
    source = image_folder(tmp_path / "raw", lines)
    with (source / "metadata.jsonl").open("ab") as file:
        file.truncate(2**32)
    ended = limited(source, tmp_path / "out")
    assert re.search(r"refused: \S*metadata\.jsonl: line 9 is longer than 1,048,576", ended.stderr)
    (source / "metadata.jsonl").unlink()
    (source / "metadata.csv").write_text('file_name,text\n0.png,"' + "word,\n" * 50_000)
    ended = limited(source, tmp_path / "out")
    assert re.search(r"refused: \S*metadata\.csv: line \d+ is not a row of a table \(field larger", ended.stderr)
    assert "word" not in ended.stderr
