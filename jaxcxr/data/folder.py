"""Image folders in the Hugging Face convention: pictures and a metadata.jsonl with `file_name`, `text`."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcxr.data import reports
from jaxcxr.data.builder import RadiographBuilder
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import SPLITS, Candidate, NotSelected, Rejected, check_patients, inside
from jaxcxr.data.selection import Selection
from jaxcxr.errors import UserError

_SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "validation": "validate",
    "val": "validate",
    "valid": "validate",
}

_NOT_FIELDS = {"text", "file_name"}  # of a prompt; the text is its `report`


def find(source: Path) -> dict[Path, str]:
    """Returns the metadata.jsonl files of a folder, each with the split that holds where a row states none.

    One file at the top, or one in each folder named for a split.
    """
    top = source / "metadata.jsonl"
    if top.is_file():
        return {top: "train"}
    return {path: split for name, split in _SPLIT_NAMES.items() if (path := source / name / top.name).is_file()}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yields (where, row) of a metadata.jsonl; a Rejected stands for a line that is not a row."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield where, Rejected("row_not_utf8", where)
        except ValueError:
            yield where, Rejected("row_not_json", where)
        else:
            yield where, row if isinstance(row, dict) else Rejected("row_not_json", where)


def _word(row: dict[str, Any], key: str, default: str = "") -> str:
    """Returns a field as a string; absent, null and empty are the default."""
    value = row.get(key)
    return default if value is None or value == "" else str(value)


class ImageFolder(RadiographBuilder):
    """Pictures with their row's `text` as report; `split`, `view`, `patient` and `labels` are optional."""

    signs = "metadata.jsonl (here or in train/)"
    licence = "That of the images and texts it was made of."

    @classmethod
    def tables(cls, source: Path) -> list[Path]:
        """The metadata.jsonl files."""
        return list(find(source))

    def candidates(self) -> list[Candidate]:
        """Lists the selected rows; see the base class. Rows without `patient` are each their own patient."""
        self.selection = Selection(self.settings)
        found: list[Candidate] = []
        pairs: set[tuple[str, str]] = set()
        seen: set[str] = set()
        files = find(self.source)
        for path, split in files.items():
            rows = list(_lines(path))
            columns = {key for _, row in rows if isinstance(row, dict) for key in row}
            missing = [name for name in ("file_name", "text") if name not in columns]
            if missing:
                raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(sorted(columns))}")
            check_templates(self.settings.prompts, {"report", *columns} - _NOT_FIELDS, str(path))
            for where, row in rows:
                try:
                    if isinstance(row, Rejected):
                        raise row
                    found.append(self._candidate(row, where, path.parent, split, seen, pairs))
                except (Rejected, NotSelected) as refusal:
                    name = row.get("file_name", where) if isinstance(row, dict) else where
                    self.ledger.refuse(str(name), refusal)
        check_patients(pairs, next(iter(files), self.source))
        return found

    def _candidate(
        self,
        row: dict[str, Any],
        where: str,
        root: Path,
        split: str,
        seen: set[str],
        pairs: set[tuple[str, str]],
    ) -> Candidate:
        if not isinstance(row.get("file_name"), str):
            raise Rejected("row_without_file_name", where)
        image = inside(root, row["file_name"])
        name = image.relative_to(self.source).as_posix()
        if name in seen:
            raise Rejected("duplicate_id", where)
        seen.add(name)
        stated = _word(row, "split", split)
        patient = _word(row, "patient", name)
        if stated not in _SPLIT_NAMES:
            raise Rejected("unknown_split", where)
        pairs.add((patient, _SPLIT_NAMES[stated]))
        labels = row.get("labels") or []
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise Rejected("labels_not_a_list", where)
        candidate = Candidate(
            id=name,
            split=_SPLIT_NAMES[stated],
            patient=patient,
            view=_word(row, "view"),
            labels=tuple(labels),
            image=image,
            read_fields=functools.partial(_fields, row, where),
        )
        self.selection.check(candidate, _word(row, "study", name))
        return candidate


def _fields(row: dict[str, Any], where: str) -> dict[str, str]:
    """Every column by its name, the text as `report`."""
    text = row.get("text")
    if not isinstance(text, str) or not reports.fold(text):
        raise Rejected("no_usable_text", where)
    values = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else _word(row, key)
        for key, value in row.items()
        if key not in _NOT_FIELDS
    }
    return values | {"report": reports.fold(text)}
