"""MIMIC-CXR with its reports (physionet.org/content/mimic-cxr-jpg and mimic-cxr, releases 2.0.0 and 2.1.0).

The tables are those of MIMIC-CXR-JPG, the images its JPGs or the DICOMs of MIMIC-CXR.
"""

import functools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcxr.data import reports
from jaxcxr.data.mimic_iv import TABLES, Patients
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import Candidate, NotSelected, Rejected, Where, check_ids, joined_below
from jaxcxr.data.source import Source
from jaxcxr.data.tables import find_table, header, in_words, positive, read_rows, read_table, uncertain
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
    """Where the parts of a MIMIC-CXR tree lie."""

    root: Path  # the folder that holds the tables
    tables: dict[str, Path]  # those of COLUMNS, and of the others those that are there
    reports: tuple[Path, ...]  # folders that may hold files/**/s*.txt or the zip; the first is the root


def find(source: Path) -> Tree | None:
    """Finds a tree's tables in `source`, in its mimic-cxr-jpg/<release>, or in a wget mirror of physionet.org.

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
    """Reads reports from the first place that has them: loose files under the roots, or the zip.

    No more of a report than `most` bytes is read or inflated.
    """

    def __init__(self, roots: tuple[Path, ...], most: int):
        self._roots, self._most = roots, most
        self._members: dict[str, zipfile.ZipFile] = {}
        self._cut = False  # a zip lacks its table of contents, which stands at the end
        for root in roots:
            if (root / _ZIP).is_file():
                try:
                    archive = zipfile.ZipFile(root / _ZIP)
                    self._members = dict.fromkeys(archive.namelist(), archive) | self._members
                except zipfile.BadZipFile:
                    self._cut = True

    def read(self, relative: str) -> str:
        """Returns a report's text; raises Rejected if it is missing, empty, too long or not UTF-8."""
        data = None
        for root in self._roots:
            try:
                with (root / relative).open("rb") as file:
                    data = file.read(self._most + 1)
                break
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise Rejected("unreadable_report") from error
        if data is None:
            data = self._unzip(relative)
        if len(data) > self._most:
            raise Rejected("report_too_long")
        if not data.strip():
            raise Rejected("empty_report")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected("report_not_utf8") from error

    def _unzip(self, relative: str) -> bytes:
        """At most one byte more than `most` of a report in the zip."""
        archive = self._members.get(relative)
        if archive is None:
            raise Rejected("missing_report_and_zip_is_cut" if self._cut else "missing_report")
        # Of the other methods zipfile inflates all that it has read of the archive at once.
        if archive.getinfo(relative).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Rejected("unreadable_report")
        try:
            with archive.open(relative) as member:
                return member.read(self._most + 1)
        # Damage in the archive's own tables reads as encryption, an unknown method or an impossible place.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise Rejected("unreadable_report") from error


class MimicCxr(Source):
    """Chest radiographs with a section of their report as prompt, in the release's own splits."""

    signs = f"{_PREFIX}metadata.csv.gz (here or in mimic-cxr-jpg/*/)"
    licence = (
        "PhysioNet Credentialed Health Data License: only who signed the data use agreement may see it or"
        " what is made of it record by record; it does not leave their storage."
    )
    splits = ("official", "p19", "hash")

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The tables of the release, and MIMIC-IV's where they are there."""
        tree = find(folder)
        return list(tree.tables.values()) if tree else []

    @functools.cached_property
    def _tree(self) -> Tree:
        tree = find(self.folder)
        if tree is None:
            raise UserError(f"{self.folder}: no {_PREFIX}metadata.csv.gz: give a MIMIC-CXR folder")
        return tree

    @functools.cached_property
    def _images(self) -> tuple[Path, str]:
        """The folder whose files/ holds the images, and how their names end: .jpg or .dcm.

        The images are beside the tables if there is a files/, else in a release of MIMIC-CXR. Tables may have been put
        beside DICOMs, and the files/ of a release may hold reports alone: where there is a choice, the first image of
        the metadata table that is in one of the places tells. In a sound tree that is the first row's.

        Raises:
          UserError: there is no files/ anywhere, or the metadata table cannot be read.
        """
        root, *others = self._tree.reports
        beside = (root / "files").is_dir()
        places = (
            [(root, ".jpg"), (root, ".dcm")] if beside else [(at, ".dcm") for at in others if (at / "files").is_dir()]
        )
        if not places:
            raise UserError(f"{root}: no files/ with JPGs, nor DICOMs in mimic-cxr/*/files/: fetch one of the releases")
        if len(places) > 1:
            for _, row in read_rows(self._tree.tables["metadata"], COLUMNS["metadata"]):
                for place, suffix in places if row else ():
                    if (place / (_image(row or {}) + suffix)).is_file():
                        return place, suffix
        return places[0]

    @property
    def name(self) -> str:
        """See the base class; DICOMs become other records than the JPGs of the same tables."""
        return "MimicCxr" if self._images[1] == ".jpg" else "MimicCxr, DICOM"

    @functools.cached_property
    def _store(self) -> ReportStore:
        return ReportStore(self._tree.reports, self.settings.max_report_bytes)

    @functools.cached_property
    def _exceptions(self) -> reports.Exceptions:
        return reports.Exceptions.read(self.settings.report_exceptions)

    @functools.cached_property
    def _texts(self) -> reports.Texts:
        return reports.Texts.read(self.settings.report_tables)

    @functools.cached_property
    def _patients(self) -> Patients | None:
        return Patients.read(self._tree.tables)

    @functools.cached_property
    def _splits(self) -> dict[str, str]:
        """The official split by image."""
        splits: dict[str, str] = {}
        table = self._tree.tables["split"]
        for row in read_table(table, COLUMNS["split"]):
            if splits.setdefault(row["dicom_id"], row["split"]) != row["split"]:
                raise UserError(f"{table}: an image is in more than one split: fetch it again")
        return splits

    @functools.cached_property
    def _labels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """The positive and the uncertain labels by study."""
        kind, tables = self.settings.label_table, self._tree.tables
        if kind not in tables:
            raise UserError(f"{self._tree.root}: no {_OPTIONAL[kind]}.csv.gz, which data.label_table={kind!r} asks for")
        ids = ("subject_id", "study_id")
        return {
            # The radiologists' table calls Airspace Opacity what the others call Lung Opacity.
            row["study_id"]: (
                tuple(name.replace("Airspace", "Lung") for name in positive(row, ids)),
                tuple(name.replace("Airspace", "Lung") for name in uncertain(row, ids)),
            )
            for row in read_table(tables[kind], COLUMNS.get(kind, ("study_id",)))
        }

    def rows(self) -> Iterator[tuple[Where, dict[str, str] | Rejected]]:
        """The metadata table's rows, and those of the split table that it lacks; see the base class."""
        metadata, split = self._tree.tables["metadata"], self._tree.tables["split"]
        table = read_rows(metadata, COLUMNS["metadata"])
        known = FIELDS + (self._patients.fields if self._patients else ())
        if "StudyDate" not in header(metadata):
            known = tuple(name for name in known if name != "age")
        if self.settings.report_tables:
            known = tuple(name for name in known if name not in ("impression", "findings"))
        check_templates(self.settings.prompts, known, str(self.folder))
        missing = set(self._splits)
        for line, row in table:
            missing.discard(row["dicom_id"] if row else "")
            yield self.where(metadata, line), row or Rejected("row_of_another_length")
        for line, row in read_rows(split, COLUMNS["split"]) if missing else ():
            if row and row["dicom_id"] in missing:
                yield self.where(split, line), Rejected("not_in_metadata")

    def candidate(self, row: dict[str, str]) -> Candidate:
        """See the base class."""
        dicom, subject, study = row["dicom_id"], row["subject_id"], row["study_id"]
        folder, suffix = self._images
        image = joined_below(folder, _image(row) + suffix)
        check_ids(r"[0-9a-f-]{1,64}", dicom)
        check_ids(r"\d{8}", subject, study)
        labels, unsure = self._labels.get(study, ((), ()))
        about = self._patients.at(subject, row.get("StudyDate", "")) if self._patients else {}
        if self.settings.report_tables:
            about["report"] = self._texts.of(dicom, study)
        return Candidate(
            id=dicom,
            split=self.split_of(subject, self._splits.get(dicom, "")),
            patient=subject,
            study=study,
            view=row["ViewPosition"],
            labels=labels,
            uncertain=unsure,
            image=str(image),
            known={"labels": in_words(labels), "view": row["ViewPosition"], **about},
        )

    def split_of(self, patient: str, official: str) -> str:
        """See the base class."""
        if self.settings.split == "p19":
            return "test" if patient.startswith("19") else "train"
        return super().split_of(patient, official)

    def fields(self, candidate: Candidate) -> Mapping[str, str]:
        """The values of `FIELDS`, and of a patient where MIMIC-IV's tables are there.

        With `data.report_tables` the report is theirs, and impression and findings are not given.
        """
        if self.settings.report_tables:
            if not candidate.known["report"]:
                raise NotSelected("no report in table")
            return candidate.known
        text = self._store.read(str(joined_below(Path(), f"{_folder(candidate.patient, candidate.study)}.txt")))
        sections = reports.folded(text)
        chosen = next((sections[name] for name in self.settings.sections if name in sections), "")
        return {
            "report": self._exceptions.section(f"s{candidate.study}", text, chosen),
            "impression": sections.get("impression", ""),
            "findings": sections.get("findings", ""),
            **candidate.known,
        }


def _folder(subject: str, study: str) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def _image(row: Mapping[str, str]) -> str:
    """The path of a metadata row's image below its release, without suffix."""
    return f"{_folder(row['subject_id'], row['study_id'])}/{row['dicom_id']}"
