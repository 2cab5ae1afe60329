"""Radiology reports in MIMIC-CXR's layout: from the text of a report to a prompt.

A header is a newline, a space, capitals and a colon; that is the rule of the section parser that MIMIC-CXR's
authors publish (github.com/MIT-LCP/mimic-cxr, txt/section_parser.py), and the section texts made with it are
what the literature trains on. Text stripped of its leading spaces is therefore a single section.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

import msgspec

from jaxcxr import parsing
from jaxcxr.data.tables import read_rows, read_table
from jaxcxr.errors import UserError

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_SEPARATOR = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_STATES_VIEW = re.compile(
    r"chest|portable|ribs|bone window|frontal (and|view|upright|semi)|(one|two|pa|ap|lateral) views?\b|"
    r"lateral and (pa|ap)|(pa|ap) and lat"
)
_BLANK_LINE = "\n \n"
# What de-identification leaves: ___ in MIMIC-CXR, XXXX in Open-i, also of a word's part ("x-XXXX") or a date's.
_MARK = re.compile(r"-?(_{2,}|X{4,})([-/](_{2,}|X{4,}))*-?")

LAST_PARAGRAPH = "last_paragraph"
# The sections that `data.sections` may name: those that are common in MIMIC-CXR or Open-i, and what `parse` makes.
SECTIONS = (
    *("impression", "findings", LAST_PARAGRAPH, "full report", "preamble", "indication", "history", "comparison"),
    *("technique", "examination", "procedure", "recommendations", "notification", "wet read", "addendum"),
)
# Other sections under the names that the parser's table of exceptions knows them by.
_NAMES = {
    "recommendation": "recommendations",
    "recommendation(s)": "recommendations",
    "exam": "examination",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "clinical indication": "indication",
    "clinical history": "history",
}


def _name(header: str) -> str:
    """Maps a header to a section name, folding the plurals, combinations and misspellings seen in reports.

    A header that states the view, such as "PORTABLE CHEST", opens findings.
    """
    name = " ".join(header.lower().split())
    words = re.findall(r"[a-z]+", name)
    for section, spellings in (("impression", ("impression", "conclusion")), ("findings", ("findings",))):
        if any(difflib.get_close_matches(word, spellings, n=1, cutoff=0.85) for word in words):
            return section
    if _STATES_VIEW.search(name) and not any(word in name for word in ("history", "comparison", "addendum")):
        return "findings"
    return _NAMES.get(name, name)


def parse(report: str) -> list[tuple[str, str]]:
    """Splits a report into sections, in the order in which they stand.

    Names are lower case, `preamble` for what precedes the first header and `full report` for a report without
    one. Empty `impression` and `findings` are dropped. Where neither remains, what follows the first blank
    line of the last section becomes `last_paragraph`. Bodies are as written; `fold` makes them one line.

    A header that stands on the line directly below an empty header belongs to the body ("FINDINGS:" above
    "CHEST, PA AND LATERAL: ..."). A line of underscores, which closes an addendum, ends its section.
    """
    text = report.replace("\r\n", "\n").replace("\r", "\n") + "\n"
    header = _HEADER.search(text)
    if header is None:
        sections = [("full report", text)]
    else:
        sections = [("preamble", text[: header.start()])]
    while header is not None:
        following = _HEADER.search(text, max(text.find("\n", header.end()), header.end()))
        body = text[header.end() : following.start() if following else len(text)]
        sections.append((_name(header[1]), body))
        header = following

    remainder = sections[-1][1]
    sections = [(name, _SEPARATOR.split(body)[0]) for name, body in sections]
    sections = [(name, body) for name, body in sections if name not in ("impression", "findings") or fold(body)]
    if not any(name in ("impression", "findings") for name, _ in sections) and _BLANK_LINE in remainder:
        paragraphs = _SEPARATOR.split(remainder)[-1].split(_BLANK_LINE, 1)
        sections.append((LAST_PARAGRAPH, paragraphs[-1]))
    return sections


def fold(text: str) -> str:
    """Puts text on one line and drops the marks of de-identification, with the brackets and stops they leave empty."""
    text = _MARK.sub(" ", text)
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    # Of stops with nothing but white space between them one stays, the full stop if it is among them.
    text = re.sub(r"[.,;:](\s+[.,;:])+", lambda stops: "." if "." in stops[0] else stops[0][0], text)
    text = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s+", " ", text)).strip()
    return re.sub(r"^[.,;:](\s+|$)", "", text)


def folded(report: str) -> dict[str, str]:
    """The sections of a report that say something, each on one line, by name.

    Of several sections with one name the last is taken: addenda stand above the report that they amend.
    """
    return {name: text for name, body in parse(report) if (text := fold(body))}


class Exceptions:
    """Reports that a table reads otherwise than the rules do.

    MIMIC-CXR's own section parser names some: studies whose text for a prompt is another section, or a span of
    characters. The table is a csv with `study_id` (s50525523), and `section` or `start` and `end`.
    """

    def __init__(self, sections: dict[str, str], spans: dict[str, tuple[int, int]]):
        self._sections, self._spans = sections, spans

    @classmethod
    def read(cls, file: str) -> Self:
        """Reads a table; an empty name is no exceptions.

        Raises:
          UserError: it cannot be read, or a row has neither a section nor a span.
        """
        sections, spans = {}, {}
        for line, row in read_rows(Path(file), ("study_id",)) if file else ():
            if row is None:
                raise UserError(f"{file}: line {line} has more or fewer fields than the first line: fix it")
            study = f"s{row['study_id'].removeprefix('s')}"
            start, end = row.get("start", ""), row.get("end", "")
            if row.get("section"):
                sections[study] = row["section"].lower()
            elif start.isdecimal() and end.isdecimal():
                spans[study] = int(start), int(end)
            else:
                raise UserError(f"{file}: line {line}: give a section, or start and end")
        return cls(sections, spans)

    def section(self, study: str, report: str, otherwise: str) -> str:
        """The text that the table gives for a study, on one line, or `otherwise`."""
        if study in self._spans:
            return fold(report[slice(*self._spans[study])])
        if study in self._sections:
            return folded(report).get(self._sections[study], "")
        return otherwise


class Texts:
    """Texts that tables give for images or studies in place of their reports.

    A table is a csv with `text`, and `dicom_id` or `study_id`; or a json of LLaVA-Rad's annotations of MIMIC-CXR
    (physionet.org/content/llava-rad-mimic-cxr-annotation), whose texts are findings.
    """

    def __init__(self, texts: dict[str, str]):
        self._texts = texts

    @classmethod
    def read(cls, files: Iterable[str]) -> Self:
        """Reads tables; of several texts of one image or study the first is taken.

        Raises:
          UserError: one cannot be read, lacks a column or is another json.
        """
        texts: dict[str, str] = {}
        for file in files:
            for key, text in _llava_rad(file) if file.endswith(".json") else _rows(file):
                if text.strip():
                    texts.setdefault(key, text)
        return cls(texts)

    def of(self, image: str, study: str) -> str:
        """The text of an image by its `dicom_id`, else of its study (50525523), on one line; empty if there is none."""
        return fold(self._texts.get(image) or self._texts.get(f"s{study}", ""))


def _rows(file: str) -> Iterator[tuple[str, str]]:
    """(image or s-study, text) of a csv."""
    for row in read_table(Path(file), ("text",)):
        if not row.get("dicom_id") and not row.get("study_id"):
            raise UserError(f"{file}: a row has neither dicom_id nor study_id: give one of these columns")
        yield row.get("dicom_id") or f"s{row['study_id'].removeprefix('s')}", row["text"]


@dataclasses.dataclass(frozen=True)
class _Turn:
    value: str | float | None  # null or NaN where there are no findings


@dataclasses.dataclass(frozen=True)
class _Annotated:
    """An entry of LLaVA-Rad's json, as far as it is read."""

    image: str
    generate_method: str
    conversations: Annotated[list[_Turn], msgspec.Meta(min_length=2)]


def _llava_rad(file: str) -> Iterator[tuple[str, str]]:
    """(image, findings) of LLaVA-Rad's json; of its two texts of an image GPT-4's comes before the rules'."""
    remedy = "these are not LLaVA-Rad's annotations: fetch them again"
    entries: list[_Annotated] = parsing.read_json(Path(file), list[_Annotated], remedy=remedy, most=2**31, nan=True)
    for entry in sorted(entries, key=lambda entry: entry.generate_method != "gpt4"):
        said = entry.conversations[1].value
        if isinstance(said, str):
            yield PurePosixPath(entry.image).stem, said.encode("utf-8", "replace").decode()  # no halves of pairs
