"""Weights of examples in the loss, from a table by record id."""

import csv
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from jaxcxr.errors import UserError

_IDS = ("id", "dicom_id")


def read(file: str | Path) -> Mapping[str, float]:
    """The weights in a csv with the columns `id` (or `dicom_id`) and `weight`, by id; 0 or more each.

    Raises:
      UserError: the file cannot be read, a column is missing, or a value is no weight; lines are named, ids are not.
    """
    path, found = Path(file), dict[str, float]()
    try:
        with path.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            columns = rows.fieldnames or ()
            own = next((name for name in _IDS if name in columns), None)
            if own is None or "weight" not in columns:
                raise UserError(f"{path}: has the columns {', '.join(columns)[:200]}; give id and weight")
            for row in rows:
                value = _number(row["weight"])
                if not 0 <= value < math.inf:
                    raise UserError(f"{path}: line {rows.line_num}: {row['weight']!r:.50} is no weight of 0 or more")
                if found.setdefault(row[own], value) != value:
                    raise UserError(f"{path}: line {rows.line_num}: this id has another weight in an earlier line")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not any(found.values()):
        raise UserError(f"{path}: has no weight above 0")
    return found


def digest(table: Mapping[str, float]) -> str:
    """A digest of what `read` found, whatever the order of its lines; ids cannot be read from it."""
    lines = sorted(f"{own}\n{value!r}\n" for own, value in table.items())
    return hashlib.blake2b("".join(lines).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
