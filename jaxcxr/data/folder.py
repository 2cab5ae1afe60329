"""Image folders in the Hugging Face convention: pictures and a metadata.jsonl or .csv with their `file_name`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxcxr.data import reports
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import SPLITS, Candidate, Rejected, inside
from jaxcxr.data.source import Source
from jaxcxr.data.tables import read_table
from jaxcxr.errors import UserError

SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "validation": "validate",
    "val": "validate",
    "valid": "validate",
}
"""The names of splits in that convention, and ours."""

_NAMES = ("metadata.jsonl", "metadata.csv")
_IMAGE, _TEXT = "file_name", "text"


def _metadata(folder: Path) -> Path | None:
    """The metadata file of a folder; the first of `_NAMES` if it has both."""
    return next((path for name in _NAMES if (path := folder / name).is_file()), None)


def find(source: Path) -> dict[Path, str]:
    """Returns the metadata files of a folder, each with the split that holds where a row states none.

    One file at the top, or one in each folder named for a split.
    """
    if top := _metadata(source):
        return {top: "train"}
    return {path: split for name, split in SPLIT_NAMES.items() if (path := _metadata(source / name))}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yields (where, row) of a metadata file; a Rejected stands for a line that is not a row.

    Raises:
      UserError: a csv cannot be read or lacks a column.
    """
    if path.suffix == ".csv":
        for number, cells in enumerate(read_table(path, (_IMAGE,)), 2):
            labels = [label.strip() for label in re.split(r"[|;]", cells.get("labels", ""))]
            yield f"{path.name}:{number}", cells | ({"labels": list(filter(None, labels))} if "labels" in cells else {})
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair can be escaped in JSON
        except UnicodeError:
            yield where, Rejected("row_not_utf8", where)
        except (ValueError, RecursionError):
            yield where, Rejected("row_not_json", where)
        else:
            yield where, row if isinstance(row, dict) else Rejected("row_not_json", where)


def _word(row: dict[str, Any], key: str, default: str = "") -> str:
    """Returns a field as a string; absent, null and empty are the default."""
    value = row.get(key)
    return default if value is None or value == "" else str(value)


class _Row(NamedTuple):
    root: Path
    where: str
    split: str  # where the row states none
    values: dict[str, Any]


class ImageFolder(Source):
    """Pictures with a row each: `text` is the report, `split`, `view`, `patient`, `study` and `labels` are optional."""

    signs = "metadata.jsonl or metadata.csv (here or in train/)"
    licence = "That of the images and texts it was made of."

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The metadata files."""
        return list(find(folder))

    def rows(self) -> Iterator[tuple[str, _Row | Rejected]]:
        """The lines of the metadata files; see the base class."""
        for path, split in find(self.folder).items():
            rows = list(_lines(path))
            columns = {key for _, row in rows if isinstance(row, dict) for key in row}
            if _IMAGE not in columns:
                raise UserError(f"{path}: no column {_IMAGE}; it has {', '.join(sorted(columns))}")
            offered = {"report" if name == _TEXT else name for name in columns - {_IMAGE}}
            check_templates(self.settings.prompts, offered, str(path))
            for where, row in rows:
                if isinstance(row, Rejected):
                    yield where, row
                else:
                    yield str(row.get("file_name") or where), _Row(path.parent, where, split, row)

    def candidate(self, row: _Row) -> Candidate:
        """See the base class. Rows without `patient` are each their own patient."""
        values, where = row.values, row.where
        if not (isinstance(values.get("file_name"), str) and values["file_name"]):
            raise Rejected("row_without_file_name", where)
        image = inside(row.root, values["file_name"])
        name = image.relative_to(self.folder).as_posix()
        stated, patient = _word(values, "split", row.split), _word(values, "patient", name)
        labels = values.get("labels") or []
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise Rejected("labels_not_a_list", where)
        return Candidate(
            id=name,
            split=self.split_of(patient, SPLIT_NAMES.get(stated, stated)),
            patient=patient,
            study=_word(values, "study", name),
            view=_word(values, "view"),
            labels=tuple(labels),
            image=str(image),
            known=_known(values),
        )


def _known(row: dict[str, Any]) -> dict[str, str]:
    values = {
        key: reports.fold(", ".join(map(str, value)) if isinstance(value, list) else _word(row, key))
        for key, value in row.items()
        if key not in (_IMAGE, _TEXT)
    }
    text = row.get(_TEXT)
    return values | ({"report": reports.fold(text) if isinstance(text, str) else ""} if _TEXT in row else {})
