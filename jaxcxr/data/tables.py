"""Tables as their publishers give them: CSV, plain or gzipped, read by column name; JSON Lines, read by line.

Nothing that is raised here quotes a row: it may hold a report.
"""

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, AnyStr

from jaxcxr.errors import UserError

MOST_CHARACTERS = 2**20  # of a line; a field of a csv has at most csv.field_size_limit(), 131,072


def positive(row: Mapping[str, str], others: Container[str]) -> tuple[str, ...]:
    """The labels of a row marked 1.0, its columns but `others`; 0.0, -1.0 (uncertain) and empty are not positive."""
    return _marked(row, others, ("1", "1.0"))


def uncertain(row: Mapping[str, str], others: Container[str]) -> tuple[str, ...]:
    """The labels of a row marked −1.0, its columns but `others`."""
    return _marked(row, others, ("-1", "-1.0"))


def _marked(row: Mapping[str, str], others: Container[str], values: Container[str]) -> tuple[str, ...]:
    return tuple(name for name, value in row.items() if name not in others and value in values)


def in_words(labels: Iterable[str]) -> str:
    """Labels as a prompt says them."""
    return ", ".join(label.lower() for label in labels)


def find_table(folders: tuple[Path, ...], name: str) -> Path | None:
    """The first `name`.csv.gz or `name`.csv in `folders`."""
    files = (folder / f"{name}{suffix}" for folder in folders for suffix in (".csv.gz", ".csv"))
    return next((file for file in files if file.is_file()), None)


def names_to_print(names: Iterable[str]) -> str:
    """Those of a table's columns that a message may quote: what is longer or is more than words may be data."""
    return ", ".join(name for name in names if re.fullmatch(r"[\w/ -]{1,40}", name) and name.count(" ") < 4)


def bounded_lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Yields the lines of an open file.

    Raises:
      UserError: a line is longer than `MOST_CHARACTERS`; no more than that is read of it.
    """
    for number in itertools.count(1):
        line = file.readline(MOST_CHARACTERS + 1)
        if not line:
            return
        if len(line) > MOST_CHARACTERS:
            raise UserError(f"{path}: line {number} is longer than {MOST_CHARACTERS:,} characters: fix it")
        yield line


def header(path: Path) -> list[str]:
    """The column names of a table; raises UserError if it cannot be read."""
    return next((names for names, _, _ in _read(path)), [])


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Yields (line, values by column) of a table; None for a row that has more or fewer fields than the first line.

    Raises:
      UserError: the table cannot be read, a line or a field is too long, or it lacks one of `columns`.
    """
    for names, line, cells in _read(path):
        if not line:
            if missing := [name for name in columns if name not in names]:
                # A first line with none of them may be data, which are nobody's to see.
                found = names_to_print(names) if len(missing) < len(columns) else "none of these in its first line"
                raise UserError(f"{path}: no column {', '.join(missing)}; it has {found}")
        elif cells:  # a blank line has none
            same = len(cells) == len(names)
            yield line, dict(zip(names, map(str.strip, cells), strict=True)) if same else None


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yields the rows of a table that others refer to, each a dict by column name.

    Raises:
      UserError: as `read_rows`, or a row has more or fewer fields than the first line.
    """
    for line, row in read_rows(path, columns):
        if row is None:
            raise UserError(
                f"{path}: line {line} has more or fewer fields than the first line: fix it, or fetch it again"
            )
        yield row


def _read(path: Path) -> Iterator[tuple[list[str], int, list[str]]]:
    """Yields (column names, line, cells) of a table: line 0 first, without cells, then each row."""
    table, opener = None, gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            table = csv.reader(bounded_lines(file, path))
            names = next(table, [])
            yield names, 0, []
            line = table.line_num + 1
            for cells in table:
                yield names, line, cells
                line = table.line_num + 1
    except csv.Error as error:
        line = table.line_num if table else 1
        raise UserError(f"{path}: line {line} is not a row of a table ({error}): fix it, or fetch it again") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable table ({type(error).__name__}): fetch it again") from error
