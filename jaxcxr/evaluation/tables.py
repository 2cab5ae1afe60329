"""The numbers of an evaluation as files: CSV for programs, LaTeX for papers."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError
from jaxcxr.evaluation.comparison import Row
from jaxcxr.files import make_folder, replace_file
from jaxcxr.parsing import to_json

FIELDS = tuple(field.name for field in dataclasses.fields(Row))
_ESCAPED = {**{letter: "\\" + letter for letter in "&%$#_{}"}, "\\": r"\textbackslash{}"}
_ESCAPED |= {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
FLOOR = "real images"
"""What a table calls the set that the floors are of."""


def check_own(out: Path, file: str) -> None:
    """Sees to it that a folder may be written: it is new, empty, or was written before.

    Args:
      out: the folder.
      file: what such a folder has once it is written.

    Raises:
      UserError: it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    begun = any((out / name).exists() for name in (file, "features", "runs"))
    if out.is_dir() and not begun and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and has no {file}; name another --out")


def write(out: Path, name: str, rows: Sequence[Row], about: Mapping[str, Any], page: str = "") -> None:
    """Writes OUT/NAME.json, .csv and .tex, and the page if there is one; a new OUT cannot be read by others.

    Args:
      out: the folder.
      name: of the files.
      rows: the numbers.
      about: what the JSON file has beside them.
      page: HTML.

    Raises:
      UserError: the folder cannot be written.
    """
    files = {f"{name}.json": to_json({"rows": to_values(rows), **about})}
    # A name may have bytes that are no text.
    texts = {f"{name}.csv": to_csv(rows), f"{name}.tex": to_latex(rows)} | ({"index.html": page} if page else {})
    files |= {file: text.encode(errors="replace") for file, text in texts.items()}
    try:
        make_folder(out, private=True)
        for file, data in files.items():
            replace_file(out / file, data)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from error


def to_values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values; a number that is not finite is null."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: finite(value) for key, value in dataclasses.asdict(row).items()} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """A line a row, under the names of `Row`'s fields; what is not known is empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(FIELDS)
    table.writerows(["" if value is None else value for value in row.values()] for row in to_values(rows))
    return out.getvalue()


def to_latex(rows: Sequence[Row]) -> str:
    """Tables for LaTeX with booktabs, one for each extractor and group: a line a set, and one of real images."""
    kinds = dict.fromkeys((row.extractor, row.group) for row in rows if "," not in row.group)
    return "\n".join(_table([row for row in rows if (row.extractor, row.group) == kind], *kind) for kind in kinds)


def in_words(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number with three digits, and its interval: 0.123 (0.101 to 0.144)."""
    if value is None or math.isnan(value):
        return "–"
    said = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return said
    return f"{said} ({low:.3g} to {high:.3g})"


def _table(rows: Sequence[Row], extractor: str, group: str) -> str:
    sets, metrics = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("set", "metric"))
    cells = {(row.set, row.metric): in_words(row.value, row.low, row.high) for row in rows}
    for row in rows:  # the floor of one set stands for all, whose n may differ
        cells.setdefault((FLOOR, row.metric), in_words(row.floor, row.floor_low, row.floor_high))
    lines = [f"% {extractor or 'pixels'}{', ' if group else ''}{group}; n = {', '.join(sorted(_sizes(rows)))}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}", r"\toprule"]
    lines.append(" & ".join(["", *map(_escaped, metrics)]) + r" \\")
    lines.append(r"\midrule")
    for name in (*sets, FLOOR):
        lines.append(" & ".join([_escaped(name), *(cells.get((name, metric), "–") for metric in metrics)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _sizes(rows: Sequence[Row]) -> set[str]:
    return {str(row.n) for row in rows}


def _escaped(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in text)
