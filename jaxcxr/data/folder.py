"""Image folders in the Hugging Face convention: pictures and a metadata.jsonl, .csv or .parquet with `file_name`s."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxcxr import parsing
from jaxcxr.data import reports
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import ANY_ID, SPLITS, Candidate, Rejected, Where, check_ids, joined_below
from jaxcxr.data.source import Source
from jaxcxr.data.tables import bounded_lines, names_to_print, read_rows
from jaxcxr.errors import UserError

SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "validation": "validate",
    "val": "validate",
    "valid": "validate",
}
"""The names of splits in that convention, and ours."""

METADATA_PARQUET = "metadata.parquet"
NAMES = ("metadata.jsonl", "metadata.csv", METADATA_PARQUET)
"""The metadata files; the first of them that is there is read."""

_IMAGE, _TEXT = "file_name", "text"
_ID = r"(?=.{1,64}$)\S+( \S+){0,2}"  # of a patient or study: at most three words, which reports have more of


@dataclasses.dataclass(frozen=True)
class _Stated:
    """What a row may say of its image, beside `file_name` and `labels`, and columns of the user's own."""

    text: str | None = None
    split: str | None = None
    view: str | int | None = None
    patient: str | float | int | None = None
    study: str | float | int | None = None


def _metadata(folder: Path) -> Path | None:
    """The metadata file of a folder; the first of `NAMES` if it has several."""
    return next((path for name in NAMES if (path := folder / name).is_file()), None)


def find(source: Path) -> dict[Path, str]:
    """Returns the metadata files of a folder, each with the split that holds where a row states none.

    One file at the top, or one in each folder named for a split.
    """
    if top := _metadata(source):
        return {top: "train"}
    return {path: split for name, split in SPLIT_NAMES.items() if (path := _metadata(source / name))}


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Yields (line, row) of a metadata file; a Rejected stands for a line that is not a row.

    Raises:
      UserError: the file cannot be read, a line is too long, or a csv lacks a column.
    """
    if path.suffix == ".csv":
        for number, cells in read_rows(path, (_IMAGE,)):
            if cells is None:
                yield number, Rejected("row_of_another_length")
                continue
            labels = [label.strip() for label in re.split(r"[|;]", cells.get("labels", ""))]
            yield number, cells | ({"labels": list(filter(None, labels))} if "labels" in cells else {})
        return
    if path.name == METADATA_PARQUET:
        from jaxcxr.data import parquet

        yield from enumerate(parquet.read_rows(path), 1)
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(bounded_lines(file, path), 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, _row(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _row(line: bytes) -> dict[str, Any] | Rejected:
    try:
        return parsing.parse_json(line, dict[str, Any])
    except UserError as error:
        return Rejected("row_not_utf8" if isinstance(error.__cause__, UnicodeDecodeError) else "row_not_json")


def _word(row: dict[str, Any], key: str, default: str = "") -> str:
    """Returns a field as a string; absent, null and empty are the default."""
    value = row.get(key)
    return default if value is None or value == "" else str(value)


class _Row(NamedTuple):
    root: Path
    split: str  # where the row states none
    values: dict[str, Any]


class ImageFolder(Source):
    """Pictures with a row each: `text` is the report, `split`, `view`, `patient`, `study` and `labels` are optional."""

    signs = "metadata.jsonl, .csv or .parquet (here or in train/)"
    licence = "That of the images and texts it was made of."

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The metadata files."""
        return list(find(folder))

    def rows(self) -> Iterator[tuple[Where, _Row | Rejected]]:
        """The lines of the metadata files; see the base class."""
        for path, split in find(self.folder).items():
            rows = list(_lines(path))
            columns = {key for _, row in rows if isinstance(row, dict) for key in row}
            if _IMAGE not in columns:
                raise UserError(f"{path}: no column {_IMAGE}; it has {names_to_print(sorted(columns))}")
            offered = {field_of(name) for name in columns - {_IMAGE} if is_field(name)}
            check_templates(self.settings.prompts, offered, str(path))
            for line, row in rows:
                yield self.where(path, line), row if isinstance(row, Rejected) else _Row(path.parent, split, row)

    def candidate(self, row: _Row) -> Candidate:
        """See the base class. Rows without `patient` are each their own patient."""
        values = row.values
        if not (isinstance(values.get("file_name"), str) and values["file_name"]):
            raise Rejected("row_without_file_name")
        image = joined_below(row.root, values["file_name"])
        return candidate(self, image.relative_to(self.folder).as_posix(), str(image), row.split, values)


def candidate(source: Source, name: str, image: str, split: str, values: dict[str, Any]) -> Candidate:
    """The candidate of a row.

    Args:
      source: that has it.
      name: its id.
      image: where its picture is.
      split: where the row states none.
      values: of the row, by column.

    Raises:
      Rejected: a value is of another type, or an id of another form.
    """
    _stated(values, _Stated, "value_of_another_type")
    _stated(values.get("labels"), list[str] | None, "labels_not_a_list")
    check_ids(ANY_ID, name)
    check_ids(_ID, *(said for key in ("patient", "study") if (said := _word(values, key))))
    stated, patient = _word(values, "split", split), _word(values, "patient", name)
    return Candidate(
        id=name,
        split=source.split_of(patient, SPLIT_NAMES.get(stated, stated)),
        patient=patient,
        study=_word(values, "study", name),
        view=_word(values, "view"),
        labels=tuple(values.get("labels") or ()),
        image=image,
        known=_known(values),
    )


def _stated(value: Any, kind: Any, reason: str) -> None:
    try:
        parsing.convert(value, kind, "row")
    except UserError as error:
        raise Rejected(reason) from error


def field_of(column: str) -> str:
    """What prompts call a column."""
    return "report" if column == _TEXT else column


def is_field(name: str) -> bool:
    """Whether a prompt can ask for a column; other names may be text of a shifted row."""
    return name.isidentifier() and len(name) <= 40


def _known(row: dict[str, Any]) -> dict[str, str]:
    values = {
        key: reports.fold(", ".join(map(str, value)) if isinstance(value, list) else _word(row, key))
        for key, value in row.items()
        if key not in (_IMAGE, _TEXT) and is_field(key)
    }
    text = row.get(_TEXT)
    return values | ({"report": reports.fold(text) if isinstance(text, str) else ""} if _TEXT in row else {})
