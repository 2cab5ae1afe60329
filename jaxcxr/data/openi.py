"""Indiana University's chest radiographs at Open-i (Demner-Fushman et al. 2016): a report in XML, its images in PNG."""

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxcxr.data import reports
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import Candidate, Rejected, Where, check_ids, joined_below
from jaxcxr.data.source import Source
from jaxcxr.data.tables import find_table, in_words, read_table

FIELDS = ("report", "impression", "findings", "labels", "view")
"""What a prompt may ask for."""

_REPORTS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology")
_IMAGES = ("NLMCXR_png", ".", "images", "images/images_normalized")
_VIEWS = "indiana_projections"
# Headings that are no finding's name; the second is of reports that nobody has indexed.
_LABELS = {"normal": "No Finding", "No Indexing": ""}


class Report(NamedTuple):
    """What an XML file says."""

    patient: str
    images: tuple[str, ...]  # their ids
    sections: dict[str, str]  # by lower-case name, each on one line; those that say something
    labels: tuple[str, ...]  # the major MeSH headings without their qualifiers


def read_report(path: Path, most: int = 2**20) -> Report:
    """Reads a report of at most `most` bytes.

    Raises:
      Rejected: it is damaged, too long, without patient or image, not UTF-8 or declares entities.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise Rejected("report_too_long")
        text = data.decode("utf-8")
        if "\0" in text:  # UTF-16, in which the parser would find entities that the next line does not
            raise Rejected("report_not_utf8")
        if "<!ENTITY" in text:  # a few lines of them can grow to gigabytes
            raise Rejected("report_declares_entities")
        root = ET.fromstring(text)
    except UnicodeDecodeError as error:
        raise Rejected("report_not_utf8") from error
    except (OSError, ET.ParseError, ValueError) as error:  # ValueError: another encoding is declared
        raise Rejected("unreadable_report") from error
    sections = {
        element.get("Label", "").lower(): reports.fold("".join(element.itertext()))
        for element in root.iter("AbstractText")
    }
    headings = [(element.text or "").split("/")[0].strip() for element in root.iter("major")]
    labels = dict.fromkeys(_LABELS.get(heading, heading) for heading in headings)
    patient = next((element.get("id", "") for element in root.iter("uId")), "")
    images = tuple(name for element in root.iter("parentImage") if (name := element.get("id", "")))
    if not patient:
        raise Rejected("report_without_patient")
    if not images:
        raise Rejected("report_without_image")
    return Report(patient, images, {name: said for name, said in sections.items() if said}, tuple(filter(None, labels)))


def image_key(name: str) -> str:
    """One name for what the reports, the archive and Kaggle's mirror call an image, with any ending.

    CXR1_1_IM-0001-3001, CXR1_1_IM-0001-3001.png and 1_IM-0001-3001.dcm.png are one image, and so are
    CXR2_IM-0652-1001 and 2_IM-0652-1001.dcm.png.
    """
    return re.sub(r"^CXR(\d+)_(\1_)?", r"\1_", name.split(".")[0])


class OpenI(Source):
    """Chest radiographs with a section of their report as prompt; a report is a patient of its own."""

    signs = "ecgen-radiology/*.xml (here or in NLMCXR_reports/)"
    licence = "The National Library of Medicine's terms for Open-i; cite Demner-Fushman et al. 2016."
    splits = ("hash",)

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The reports, and the table of views where it is there."""
        found = next((files for name in _REPORTS if (files := sorted((folder / name).glob("*.xml")))), [])
        views = find_table((folder,), _VIEWS)
        return [*found, views] if found and views else found

    @functools.cached_property
    def _views(self) -> dict[str, str]:
        """FRONTAL or LATERAL by image key."""
        table = find_table((self.folder,), _VIEWS)
        rows = read_table(table, ("filename", "projection")) if table else ()
        return {image_key(row["filename"]): row["projection"].upper() for row in rows}

    @functools.cached_property
    def _images(self) -> dict[str, Path]:
        """The pictures there are by image key; of several with one key the first."""
        found: dict[str, Path] = {}
        for folder in [self.folder / name for name in _IMAGES]:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix in (".png", ".jpg"):
                    found.setdefault(image_key(path.name), path)
        return found

    def rows(self) -> Iterator[tuple[Where, tuple[str, Report] | Rejected]]:
        """The images of the reports, each with its report; see the base class."""
        check_templates(self.settings.prompts, FIELDS, str(self.folder))
        # A report's file is called by its patient, so that its place is that among the names.
        for number, path in enumerate(self.tables(self.folder), 1):
            if path.suffix != ".xml":
                continue
            where = self.where(path.parent, number)
            try:
                report = read_report(path, self.settings.max_report_bytes)
            except Rejected as fault:
                yield where, fault
                continue
            for image in report.images:
                yield where, (image, report)

    def candidate(self, row: tuple[str, Report]) -> Candidate:
        """See the base class."""
        image, report = row
        key, sections = image_key(image), report.sections
        view = self._views.get(key, "")
        absent = joined_below(self.folder, f"{_IMAGES[0]}/{image}.png")
        check_ids(r"[\w.-]{1,64}", image, report.patient)
        return Candidate(
            id=image,
            split=self.split_of(report.patient, ""),
            patient=report.patient,
            study=report.patient,
            view=view,
            labels=report.labels,
            image=str(self._images.get(key, absent)),
            known={
                "report": next((sections[name] for name in self.settings.sections if name in sections), ""),
                "impression": sections.get("impression", ""),
                "findings": sections.get("findings", ""),
                "labels": in_words(report.labels),
                "view": view,
            },
        )
