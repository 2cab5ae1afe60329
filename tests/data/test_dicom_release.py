"""The DICOM release of MIMIC-CXR as a source."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicoms import (
    FAULTS,
    save,
    write_broken_files,
    write_fault,
)
from trees import mimic_tree, picture, rows, small_config

from jaxcxr.data import images
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError


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
        reasons[row.dicom] = reason
    caplog.clear()
    summary = prepare(small_config(max_bad_share=0.5), tree, tmp_path / "out", workers=1)
    assert summary.bad == {"unreadable_image": len(reasons) - 1, "image_too_large": 1}
    assert sum(summary.splits.values()) == 48 - len(reasons)
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    rows_of_table = {2 + number: row.dicom for number, row in enumerate(members)}
    assert {rows_of_table[line["row"]]: line["detail"] for line in listed} == reasons
    told = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for text in (told.out, told.err, caplog.text, written.decode("latin-1")):
        assert "ecret" not in text.lower()
