"""MIMIC-CXR-JPG with MIMIC-CXR's reports (physionet.org/content/mimic-cxr-jpg, releases 2.0.0 and 2.1.0)."""

import functools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxcxr.data import reports
from jaxcxr.data.builder import RadiographBuilder
from jaxcxr.data.mimic_iv import DEMOGRAPHICS, TABLES, Patients
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import (
    SPLITS,
    Candidate,
    Ledger,
    NotSelected,
    Rejected,
    Settings,
    check_patients,
    inside,
)
from jaxcxr.data.selection import Selection
from jaxcxr.data.tables import find_table, in_words, positive, read_table
from jaxcxr.errors import UserError

# The tables keep "2.0.0" in their names in release 2.1.0, all but the one that came with it.
_PREFIX = "mimic-cxr-2.0.0-"
_ZIP = "mimic-cxr-reports.zip"
COLUMNS = {
    "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition"),
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "chexpert": ("subject_id", "study_id", "No Finding"),
}
_OPTIONAL = {"negbio": f"{_PREFIX}negbio", "test": "mimic-cxr-2.1.0-test-set-labeled"}
FIELDS = ("report", "impression", "findings", "labels", "view")
"""What a prompt may ask for."""


class Tree(NamedTuple):
    """Where the parts of a MIMIC-CXR-JPG tree lie."""

    images: Path  # the folder that holds files/ and the tables
    tables: dict[str, Path]  # those of COLUMNS, and of the others those that are there
    reports: tuple[Path, ...]  # folders that may hold files/**/s*.txt or the zip


def find(source: Path) -> Tree | None:
    """Finds a tree in `source`, in its mimic-cxr-jpg/<release>, or in a wget mirror of physionet.org.

    Returns None if no table is there; raises UserError naming the missing one if only some are.
    """
    tops = [source, source / "physionet.org" / "files"]
    releases = [folder for top in tops for folder in sorted(top.glob("mimic-cxr-jpg/*"), reverse=True)]
    for root in [source, *releases]:
        tables = {kind: path for kind in COLUMNS if (path := find_table((root,), f"{_PREFIX}{kind}"))}
        if not tables:
            continue
        for kind in COLUMNS:
            if kind not in tables:
                raise UserError(f"{root}: no {_PREFIX}{kind}.csv.gz: fetch it from the MIMIC-CXR-JPG release")
        tables |= {kind: path for kind, name in _OPTIONAL.items() if (path := find_table((root,), name))}
        beside = [root.parent.parent, source, *tops]
        texts = [folder for top in beside for folder in sorted(top.glob("mimic-cxr/*"), reverse=True)]
        hospital = [folder for top in beside for folder in sorted(top.glob("mimiciv/*/hosp"), reverse=True)]
        tables |= {kind: path for kind in TABLES if (path := find_table((root, source, *hospital), kind))}
        return Tree(root, tables, tuple(dict.fromkeys([root, source, *texts])))
    return None


class ReportStore:
    """Reads reports from the first place that has them: loose files under the roots, or the zip."""

    def __init__(self, roots: tuple[Path, ...]):
        self._roots = roots
        zips = [_open_zip(root / _ZIP) for root in roots if (root / _ZIP).is_file()]
        self._members = {name: archive for archive in reversed(zips) for name in archive.namelist()}

    def read(self, relative: str) -> str:
        """Returns a report's text; raises Rejected if it is missing, empty or not UTF-8."""
        data = None
        for root in self._roots:
            try:
                data = (root / relative).read_bytes()
                break
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise Rejected("unreadable_report", relative) from error
        if data is None:
            if relative not in self._members:
                raise Rejected("missing_report", relative)
            try:
                data = self._members[relative].read(relative)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise Rejected("unreadable_report", relative) from error
        if not data.strip():
            raise Rejected("empty_report", relative)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected("report_not_utf8", relative) from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a readable zip: fetch it again") from error


class MimicCxr(RadiographBuilder):
    """Chest radiographs with a section of their report as prompt, in the release's own splits."""

    signs = f"{_PREFIX}metadata.csv.gz (here or in mimic-cxr-jpg/*/)"
    licence = (
        "PhysioNet Credentialed Health Data License: only who signed the data use agreement may see it or"
        " what is made of it record by record; it does not leave their storage."
    )

    splits = ("official", "p19")

    @classmethod
    def tables(cls, source: Path) -> list[Path]:
        """The tables of the release, and MIMIC-IV's where they are there."""
        tree = find(source)
        return list(tree.tables.values()) if tree else []

    def candidates(self) -> list[Candidate]:
        """Lists the metadata table's selected rows; see the base class."""
        tree = find(self.source)
        if tree is None:
            raise UserError(f"{self.source}: no {_PREFIX}metadata.csv.gz: give a MIMIC-CXR-JPG folder")
        splits: dict[str, str] = {}
        pairs = set()
        for row in read_table(tree.tables["split"], COLUMNS["split"]):
            splits.setdefault(row["dicom_id"], row["split"])
            pairs.add((row["subject_id"], row["split"]))
        check_patients(pairs, tree.tables["split"])
        patients = Patients.read(tree.tables)
        check_templates(self.settings.prompts, FIELDS + (DEMOGRAPHICS if patients else ()), str(self.source))
        lister = _Lister(tree, self.settings, splits, self._labels(tree), patients)
        return list(lister.run(self.ledger))

    def _labels(self, tree: Tree) -> dict[str, tuple[str, ...]]:
        """The positive labels by study."""
        kind = self.settings.label_table
        if kind not in tree.tables:
            raise UserError(f"{tree.images}: no {_OPTIONAL[kind]}.csv.gz, which data.label_table={kind!r} asks for")
        ids = ("subject_id", "study_id")
        return {
            # The radiologists' table calls Airspace Opacity what the others call Lung Opacity.
            row["study_id"]: tuple(name.replace("Airspace", "Lung") for name in positive(row, ids))
            for row in read_table(tree.tables[kind], COLUMNS.get(kind, ("study_id",)))
        }


class _Lister:
    """Turns metadata rows into candidates."""

    def __init__(
        self,
        tree: Tree,
        settings: Settings,
        splits: dict[str, str],
        labels: dict[str, tuple[str, ...]],
        patients: Patients | None,
    ):
        self.tree, self.settings, self.splits, self.labels, self.patients = tree, settings, splits, labels, patients
        self.store = ReportStore(tree.reports)
        self.selection = Selection(settings)
        self.seen: set[str] = set()

    def run(self, ledger: Ledger) -> Iterator[Candidate]:
        for row in read_table(self.tree.tables["metadata"], COLUMNS["metadata"]):
            try:
                yield self.candidate(row)
            except (Rejected, NotSelected) as refusal:
                ledger.refuse(row["dicom_id"], refusal)
        for dicom in self.splits.keys() - self.seen:
            ledger.refuse(dicom, Rejected("not_in_metadata"))

    def candidate(self, row: dict[str, str]) -> Candidate:
        dicom, subject, study = row["dicom_id"], row["subject_id"], row["study_id"]
        if dicom in self.seen:
            raise Rejected("duplicate_id")
        self.seen.add(dicom)
        study_folder = f"files/p{subject[:2]}/p{subject}/s{study}"
        report = str(inside(Path(), f"{study_folder}.txt"))
        candidate = Candidate(
            id=dicom,
            split=self.split(dicom, subject),
            patient=subject,
            view=row["ViewPosition"],
            labels=self.labels.get(study, ()),
            image=inside(self.tree.images, f"{study_folder}/{dicom}.jpg"),
            read_fields=functools.partial(self.fields, row, report),
        )
        self.selection.check(candidate, study)
        if candidate.split not in SPLITS:
            raise Rejected("unknown_split" if dicom in self.splits else "not_in_split_table")
        return candidate

    def split(self, dicom: str, subject: str) -> str:
        """The image's split by the settings; any other word is a fault of the table."""
        if self.settings.split == "p19":
            return "test" if subject.startswith("19") else "train"
        return self.splits.get(dicom, "")

    def fields(self, row: dict[str, str], report: str) -> dict[str, str]:
        """The values of `FIELDS`, and of `DEMOGRAPHICS` where MIMIC-IV's tables are there."""
        sections = reports.folded(self.store.read(report))
        about = self.patients.at(row["subject_id"], row.get("StudyDate", "")) if self.patients else {}
        return {
            "report": next((sections[name] for name in self.settings.sections if name in sections), ""),
            "impression": sections.get("impression", ""),
            "findings": sections.get("findings", ""),
            "labels": in_words(self.labels.get(row["study_id"], ())),
            "view": row["ViewPosition"],
            **about,
        }
