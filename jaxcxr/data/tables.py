"""CSV tables as PhysioNet gives them, plain or gzipped, read by column name."""

import csv
import gzip
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError


def positive(row: Mapping[str, str], others: Container[str]) -> tuple[str, ...]:
    """The labels of a row marked 1.0, its columns but `others`; 0.0, -1.0 (uncertain) and empty are not positive."""
    return tuple(name for name, value in row.items() if name not in others and value in ("1", "1.0"))


def in_words(labels: Iterable[str]) -> str:
    """Labels as a prompt says them."""
    return ", ".join(label.lower() for label in labels)


def find_table(folders: tuple[Path, ...], name: str) -> Path | None:
    """The first `name`.csv.gz or `name`.csv in `folders`."""
    files = (folder / f"{name}{suffix}" for folder in folders for suffix in (".csv.gz", ".csv"))
    return next((file for file in files if file.is_file()), None)


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Reads a table by column name; raises UserError naming the file and the columns that it lacks."""
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            names = table.fieldnames or ()
            if missing := [name for name in columns if name not in names]:
                # A first line with none of them may be data, which are nobody's to see.
                found = ", ".join(names) if len(missing) < len(columns) else "none of these in its first line"
                raise UserError(f"{path}: no column {', '.join(missing)}; it has {found}")
            for row in table:
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable table ({type(error).__name__}): fetch it again") from error
