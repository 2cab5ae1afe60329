"""Phantom studies written as a MIMIC-CXR-JPG tree with its reports beside the study folders.

MIMIC-CXR-JPG 2.1.0 keeps "2.0.0" in most table names and drops subject_id from its labelled test set, where
Lung Opacity is called Airspace Opacity; so does this.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.phantoms.film import enlarge
from jaxcxr.phantoms.generator import KINDS, MAX_SIZE, MIN_SIZE, Drawing, Finding, Patient, draw
from jaxcxr.phantoms.reports import LABELS, mentioned_labels, report_text, true_labels, write_report
from jaxcxr.phantoms.studies import PORTABLE, PREVALENCE, sample_findings

REVISION = 3
"""Raised when the same settings would give other pictures or words."""
COMMENT = "synthetic phantom, not a patient"
SETTINGS, TRUTH = "phantom.json", "phantom-truth.jsonl"

SHARES: Mapping[str, float] = {"train": 0.8, "validate": 0.1, "test": 0.1}
FINDINGS_ONLY, SECOND_IMAGE = 0.12, 0.10
STUDIES_PER_PATIENT = (0.6, 0.3, 0.1)
MAX_STUDIES = 8
MAX_FILM = 8192

METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
VIEWS = {"PA": ("CHEST (PA)", "postero-anterior"), "AP": ("CHEST (PORTABLE AP)", "antero-posterior")}


@dataclass(frozen=True)
class Written:
    """What `write_tree` left at `out`; `fresh` is False where an equal tree was there already."""

    out: Path
    patients: int
    studies: int
    images: int
    fresh: bool


@dataclass(frozen=True)
class Counts:
    """How much a tree holds."""

    patients: int
    studies: int
    images: int


@dataclass(frozen=True)
class Recorded:
    """The content of a tree's `phantom.json`: the settings it was drawn by, and how much it holds."""

    settings: dict[str, Any]
    written: Counts


def read_settings(tree: Path) -> Recorded:
    """Reads a tree's `phantom.json`.

    Raises:
      UserError: it is absent or damaged.
    """
    return parsing.read_json(tree / SETTINGS, Recorded, remedy="write the phantoms again")


def write_tree(
    out: str | os.PathLike[str],
    patients: int,
    size: int,
    seed: int = 0,
    findings: Sequence[str] = KINDS,
    masks: bool = False,
    shares: Mapping[str, float] = SHARES,
    prevalence: Mapping[str, float] = PREVALENCE,
    progress: bool = False,
    film: tuple[int, int] | None = None,
    unmentioned: Sequence[str] = (),
) -> Written:
    """Write `patients` phantom patients, images `size` pixels square, as a MIMIC-CXR-JPG tree at `out`.

    With `film`, a width and a height, they are drawn at `size` and enlarged to that, to be as heavy as real ones. The
    reports say nothing of the kinds in `unmentioned`, which are not in `findings`.

    The tree is written beside `out` and renamed there when whole; equal arguments give equal bytes. Where `out`
    already holds the tree of equal arguments nothing is written.

    Raises:
        UserError: an argument is out of range, or `out` holds something else.
    """
    out = Path(out)
    settings = _settings(patients, size, seed, findings, masks, shares, prevalence, film, unmentioned)
    there = _already_there(out, settings)
    if there:
        return there
    with new_folder(out) as building:
        tree = _Tree(building, settings)
        for number in tqdm(range(patients), "phantoms", unit="patient", disable=not progress):
            tree.add_patient(number)
        written = Written(out, patients, tree.studies, len(tree.metadata), True)
        tree.close(written)
    return written


def _settings(
    patients: int,
    size: int,
    seed: int,
    findings: Sequence[str],
    masks: bool,
    shares: Mapping[str, float],
    prevalence: Mapping[str, float],
    film: tuple[int, int] | None,
    unmentioned: Sequence[str],
) -> dict[str, Any]:
    unknown = sorted({*findings, *unmentioned} - set(KINDS))
    if unknown:
        raise UserError(f"phantom finding {unknown[0]!r} is unknown; choose from {', '.join(KINDS)}")
    if both := sorted(set(findings) & set(unmentioned)):
        raise UserError(f"phantom finding {both[0]!r} is drawn and unmentioned; leave it out of --findings")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"phantom size {size} is outside {MIN_SIZE} to {MAX_SIZE}; choose a size in that range")
    if film and not size <= min(film) <= max(film) <= MAX_FILM:
        raise UserError(f"phantom film {film[0]}x{film[1]} has a side outside {size}, the size drawn, to {MAX_FILM}")
    if not 1 <= patients <= 1_000_000:
        raise UserError(f"phantom patients {patients} is outside 1 to 1000000; choose a number in that range")
    if seed < 0:
        raise UserError(f"phantom seed {seed} is negative; choose 0 or more")
    if set(shares) != set(SHARES) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise UserError(f"split shares {dict(shares)} must name train, validate and test and add up to 1")
    unknown = sorted(set(prevalence) - set(PREVALENCE))
    if unknown:
        raise UserError(f"prevalence of {unknown[0]!r} is unknown; choose from {', '.join(PREVALENCE)}")
    effusions = math.fsum(share for name, share in prevalence.items() if name.endswith(" effusion"))
    for name, share in [*prevalence.items(), ("the effusions together", effusions)]:
        if not 0 <= share <= 1:
            raise UserError(f"prevalence of {name} is {share:g}; give 0 to 1")
    return {
        "revision": REVISION,
        "patients": patients,
        "size": size,
        "film": list(film) if film else None,
        "seed": seed,
        "findings": [kind for kind in KINDS if kind in findings],
        "masks": masks,
        "shares": dict(shares),
        "prevalence": dict(prevalence),
        **({"unmentioned": [kind for kind in KINDS if kind in unmentioned]} if unmentioned else {}),
    }


def _already_there(out: Path, settings: dict[str, Any]) -> Written | None:
    if not out.exists():
        return None
    if not out.is_dir() or (any(out.iterdir()) and not (out / SETTINGS).exists()):
        raise UserError(f"{out} exists and is not a phantom tree; choose another --out")
    if not any(out.iterdir()):
        return None
    recorded = read_settings(out)
    names = [*settings, *(name for name in recorded.settings if name not in settings)]
    changed = [name for name in names if recorded.settings.get(name) != settings.get(name)]
    if changed:
        raise UserError(f"{out} holds phantoms with another {', '.join(changed)}; choose another --out or remove it")
    counts = recorded.written
    return Written(out, counts.patients, counts.studies, counts.images, False)


@dataclass
class _Tree:
    """The tree being written: images and reports at once, tables when closed."""

    root: Path
    settings: dict[str, Any]
    studies: int = 0
    metadata: list[list[Any]] = field(default_factory=list)
    splits: list[list[Any]] = field(default_factory=list)
    labels: list[list[Any]] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seed = self.settings["seed"]
        self.split_of = _split_patients(self.settings["patients"], self.seed, self.settings["shares"])

    def add_patient(self, number: int) -> None:
        patient = Patient(self.seed, number)
        rng = np.random.default_rng([self.seed, number, 2**31])
        subject = 10_000_000 + _scatter(number, self.seed)
        first_year = int(rng.integers(2110, 2190))
        for study in range(1 + int(rng.choice(len(STUDIES_PER_PATIENT), p=STUDIES_PER_PATIENT))):
            self._add_study(patient, study, subject, first_year + study)

    def _add_study(self, patient: Patient, study: int, subject: int, year: int) -> None:
        rng = np.random.default_rng([self.seed, patient.number, study, 2**31])
        findings = sample_findings(rng, self.settings["findings"], self.settings["prevalence"])
        unmentioned = self.settings.get("unmentioned", ())
        report = write_report(findings, rng, rng.random() >= FINDINGS_ONLY, unmentioned)
        views = ["AP" if rng.random() < PORTABLE else "PA"] + ["AP"] * int(rng.random() < SECOND_IMAGE)
        study_id = 50_000_000 + _scatter(patient.number * MAX_STUDIES + study, self.seed)
        folder = self.root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"
        folder.joinpath(f"s{study_id}").mkdir(parents=True)
        comparison = "Chest radiograph ___." if study else "None."
        text = report_text(report, VIEWS[views[0]][0], comparison, rng, unmentioned)
        (folder / f"s{study_id}.txt").write_text(text, encoding="utf-8", newline="\n")
        date = 10_000 * year + 100 * int(rng.integers(1, 13)) + int(rng.integers(1, 29))
        time = 10_000 * int(rng.integers(24)) + 100 * int(rng.integers(60)) + int(rng.integers(60)) + 0.875
        for exposure, view in enumerate(views):
            drawing = draw(patient, study, findings, self.settings["size"], view, exposure)
            if self.settings["film"]:
                grain = np.random.default_rng([self.seed, patient.number, study, 2**31 + 1 + exposure])
                drawing = enlarge(drawing, tuple(self.settings["film"]), grain)
            dicom = _dicom_id(f"{self.seed}/{patient.number}/{study}/{exposure}")
            _save_jpeg(drawing.image, folder / f"s{study_id}" / f"{dicom}.jpg")
            ids = {"dicom_id": dicom, "subject_id": subject, "study_id": study_id}
            self._add_image(ids, view, date, time, self.split_of[patient.number], findings, drawing)
        said = mentioned_labels(findings, report)
        self.labels.append([subject, study_id, *("" if said[x] is None else said[x] for x in LABELS)])
        self.studies += 1

    def _add_image(
        self,
        ids: dict[str, Any],
        view: str,
        date: int,
        time: float,
        split: str,
        findings: list[Finding],
        drawing: Drawing,
    ) -> None:
        (rows, columns), (procedure, projection) = drawing.image.shape, VIEWS[view]
        self.metadata.append(
            [*ids.values(), procedure, view, rows, columns, date, time, procedure, projection, "Erect"]
        )
        self.splits.append([ids["dicom_id"], ids["study_id"], ids["subject_id"], split])
        found = [f.as_dict() | {"box": list(box)} for f, box in zip(findings, drawing.boxes, strict=True)]
        if self.settings["masks"]:
            for index, mask in enumerate(drawing.masks):
                found[index]["mask"] = f"masks/{ids['dicom_id']}-{index}-{findings[index].kind}.png"
                path = self.root / found[index]["mask"]
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(np.uint8(255) * mask).save(path)
            path = self.root / "conditions" / f"{ids['dicom_id']}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(drawing.condition(findings)).save(path)
        self.truth.append(ids | {"split": split, "view": view, "findings": found, "labels": true_labels(findings)})

    def close(self, written: Written) -> None:
        """Write the tables, the truth and the settings."""
        names = ["subject_id", "study_id", *LABELS]
        _write_gzip(self.root / "mimic-cxr-2.0.0-metadata.csv.gz", _csv(METADATA, self.metadata))
        split_names = ("dicom_id", "study_id", "subject_id", "split")
        _write_gzip(self.root / "mimic-cxr-2.0.0-split.csv.gz", _csv(split_names, self.splits))
        for labeler in ("chexpert", "negbio"):
            _write_gzip(self.root / f"mimic-cxr-2.0.0-{labeler}.csv.gz", _csv(names, self.labels))
        tested = {row[1] for row in self.splits if row[3] == "test"}
        test_names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in names[1:]]
        rows = [row[1:] for row in self.labels if row[1] in tested]
        (self.root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_bytes(_csv(test_names, rows))
        lines = "".join(json.dumps(record) + "\n" for record in self.truth)
        (self.root / TRUTH).write_text(lines, encoding="utf-8", newline="\n")
        counts = {"patients": written.patients, "studies": written.studies, "images": written.images}
        record = {"comment": COMMENT, "settings": self.settings, "written": counts}
        (self.root / SETTINGS).write_text(json.dumps(record, indent=2) + "\n", newline="\n")


def _split_patients(patients: int, seed: int, shares: Mapping[str, float]) -> list[str]:
    """Split of each patient; the two held-out splits get at least one patient where there are three."""
    order = np.random.default_rng([seed, 2**31 + 1]).permutation(patients)
    split_of = ["train"] * patients
    start = 0
    for split in ("validate", "test"):
        count = round(patients * shares[split])
        if shares[split] and patients >= 3:
            count = max(1, count)
        for number in order[start : start + count]:
            split_of[number] = split
        start += count
    return split_of


def _scatter(number: int, seed: int) -> int:
    """One-to-one scatter of small numbers over seven digits (multiplication modulo a prime)."""
    return (number * 7_368_787 + seed * 104_729 + 32) % 9_999_991


def _dicom_id(key: str) -> str:
    digest = hashlib.sha1(key.encode()).hexdigest()
    return "-".join(digest[i : i + 8] for i in range(0, 40, 8))


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, quality=95, comment=COMMENT.encode())


def _csv(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([list(names), *rows])
    return text.getvalue().encode()


def _write_gzip(path: Path, content: bytes) -> None:
    """Gzip without name or time, so that equal content gives equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(content)
