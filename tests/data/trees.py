"""Small raw data sets for tests: a MIMIC-CXR-JPG tree and an image folder, with pictures that tell left from right."""

import csv
import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcxr.data.loader import open_split
from jaxcxr.data.settings import defaults

LABELS = ("Cardiomegaly", "No Finding", "Pneumothorax")


def picture(number: int, width: int = 60, height: int = 80) -> np.ndarray:
    """(height, width) uint8: a ramp that brightens to the right and downwards, its level set by `number`."""
    y, x = np.mgrid[0:height, 0:width]
    return (40 + 5 * (number % 8) + 100 * x / width + 50 * y / height).astype(np.uint8)


def small_config(**changes):
    config = defaults()
    config.size, config.tokenizer_vocab = 16, 600
    config.update(changes)
    return config


def report(impression: str | None, findings: str | None = None) -> str:
    parts = [" EXAMINATION:  CHEST (PA AND LAT)"]
    parts += [f" FINDINGS:  {findings}"] if findings is not None else []
    parts += [f" IMPRESSION:  {impression}"] if impression is not None else []
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(parts) + "\n"


@dataclasses.dataclass
class Row:
    """One image of a MIMIC tree; studies hold one image each, patients two."""

    number: int
    view: str = "PA"
    split: str = "train"
    text: bytes | None = None  # the report's bytes; None: a sound one
    image: bytes | None = None  # the JPEG's bytes; None: a sound one
    write_image: bool = True
    write_report: bool = True
    date: str = "21800506"

    @property
    def dicom(self) -> str:
        return f"{self.number:08x}-0000"

    @property
    def subject(self) -> str:
        return str(10_000_000 + self.number // 2)

    @property
    def study(self) -> str:
        return str(50_000_000 + self.number)

    @property
    def folder(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}"


def rows(train: int = 12, validate: int = 4, test: int = 4) -> list[Row]:
    splits = ["train"] * train + ["validate"] * validate + ["test"] * test
    return [Row(n, split=split, view=("PA", "AP")[n % 2]) for n, split in enumerate(splits)]


def write_table(path: Path, head: list[str], body: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([head, *body])


def mimic_tree(root: Path, members: list[Row]) -> Path:
    """Writes root/mimic-cxr-jpg/2.1.0 and root/mimic-cxr/2.1.0; returns root."""
    jpg, txt = root / "mimic-cxr-jpg/2.1.0", root / "mimic-cxr/2.1.0"
    for row in members:
        image = jpg / row.folder / f"s{row.study}" / f"{row.dicom}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        if row.write_image:
            Image.fromarray(picture(row.number)).save(image, quality=95)
            if row.image is not None:
                image.write_bytes(row.image)
        text = txt / row.folder / f"s{row.study}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        if row.write_report:
            sound = report(f"Image number {row.number} is clear.", "Lungs are clear.").encode()
            text.write_bytes(sound if row.text is None else row.text)
    write_table(
        jpg / "mimic-cxr-2.0.0-metadata.csv.gz",
        ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"],
        [[row.dicom, row.subject, row.study, row.view, row.date] for row in members],
    )
    write_table(
        jpg / "mimic-cxr-2.0.0-split.csv.gz",
        ["dicom_id", "study_id", "subject_id", "split"],
        [[row.dicom, row.study, row.subject, row.split] for row in members],
    )
    write_table(
        jpg / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ["subject_id", "study_id", *LABELS],
        [
            [row.subject, row.study, *[("1.0", "-1.0", "0.0", "")[(row.number + i) % 4] for i in range(3)]]
            for row in members
        ],
    )
    return root


def image_folder(root: Path, lines: list[dict]) -> Path:
    """Writes the pictures that the lines name, by their order, and metadata.jsonl; returns root."""
    for number, line in enumerate(lines):
        path = root / line["file_name"]
        if path.is_relative_to(root) and ".." not in path.parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).save(path)
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def quarantine(out: Path, source: Path) -> list[tuple[str, str]]:
    """The quarantine as (id, reason), the ids found again in the source as its owner does; in the order of ids."""
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert all(row.keys() == {"table", "row", "reason", "detail"} for row in listed)
    return sorted((_found_again(source / row["table"], row["row"]), row["reason"]) for row in listed)


def _found_again(table: Path, row: int) -> str:
    if table.is_dir():
        return (table / sorted(path.name for path in table.iterdir())[row - 1]).relative_to(table.parents[1]).as_posix()
    if table.suffix == ".jsonl":
        line = table.read_bytes().split(b"\n")[row - 1]
        try:
            return json.loads(line)["file_name"]
        except (ValueError, LookupError, TypeError):
            return f"{table.name}:{row}"
    with gzip.open(table, "rt") if table.suffix == ".gz" else table.open() as file:
        head, *body = csv.reader(file)
    named = dict(zip(head, body[row - 2], strict=False))
    return next(named[key] for key in ("dicom_id", "file_name", "Path") if key in named) or f"{table.name}:{row}"


def everything(out: Path, split: str) -> dict[str, dict]:
    return {record["id"].decode(): record for record in open_split(out, split)}
