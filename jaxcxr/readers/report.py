"""The scores of a study as a page and as tables."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxcxr import html
from jaxcxr.errors import UserError
from jaxcxr.evaluation.tables import in_words
from jaxcxr.files import make_folder, replace_file
from jaxcxr.parsing import to_json
from jaxcxr.readers.answers import Answers, lines
from jaxcxr.readers.key import Key
from jaxcxr.readers.scores import ALL, Row, Scores
from jaxcxr.readers.tasks import TASKS

NUMBERS = "scores.json"
_STYLE = """
.numbers b { font-size: 1.6rem; }
.notice { margin-bottom: 1rem; }
.roc { max-width: 30rem; margin-top: 1rem; }
td { white-space: nowrap; }
"""
_WORDS = {
    "d_prime": "d′",
    "auc": "area under the ROC curve",
    "fleiss_kappa": "Fleiss’ κ",
    "alpha_nominal": "Krippendorff’s α, nominal",
    "alpha_ordinal": "Krippendorff’s α, ordinal",
    "alpha_ordinal_of_confidence": "Krippendorff’s α, ordinal, of answers with confidence",
    "agrees_with_itself": "equal answers to repeats",
    "kappa_with_itself": "Cohen’s κ of repeats",
    "seconds": "seconds an item (median, quartiles)",
}
_HEADLINES = {
    "real": ("accuracy", "d_prime", "auc", "fleiss_kappa"),
    "realism": ("synthetic less real", "alpha_ordinal"),
    "match": ("synthetic less real", "alpha_ordinal"),
    "finding": ("accuracy", "d_prime", "auc", "fleiss_kappa"),
    "better": ("prefers", "fleiss_kappa"),
}


def write(out: Path, key: Key, answers: Answers, scores: Scores) -> None:
    """Writes OUT/index.html, scores.json and scores.csv; a new OUT cannot be read by others.

    Raises:
      UserError: the folder cannot be written.
    """
    about = {
        "study": key.study,
        "readers": list(answers.of),
        "left_out": dict(answers.left_out),
        "missing": dict(answers.missing),
        "silent": list(answers.silent),
        "notes": list(key.notes),
    }
    files = {
        NUMBERS: to_json({"rows": [_values(row) for row in scores.rows], **about}),
        "scores.csv": to_csv(scores.rows).encode(),
        "index.html": render(key, answers, scores).encode(),
    }
    try:
        make_folder(out, private=True)
        for name, data in files.items():
            replace_file(out / name, data)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from error


def to_csv(rows: Sequence[Row]) -> str:
    """A line a row, under the names of `Row`'s fields; what is not defined is empty."""
    out = io.StringIO()
    table = csv.DictWriter(out, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows({name: "" if value is None else value for name, value in _values(row).items()} for row in rows)
    return out.getvalue()


def render(key: Key, answers: Answers, scores: Scores) -> str:
    """The page as HTML: no image, no script, no address, every text escaped."""
    title = f"Readers of study {key.study}"
    body = "".join(
        [*_head(title, key, answers), *(text for task in TASKS for text in _task(task, key, scores)), *_end(key)]
    )
    return html.document(title, body, style=_STYLE)


def _values(row: Row) -> dict[str, Any]:
    """A row as JSON values; a number that is not finite is null."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: finite(value) for name, value in dataclasses.asdict(row).items()}


def _head(title: str, key: Key, answers: Answers) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}</h1>\n"
    sets = ", ".join(f"{name} ({kind})" for name, kind in key.sets.items())
    yield f"<p>{len(answers.of)} of {len(key.readers)} readers, {len(key.items)} items. Images: {escape(sets)}.</p>\n"
    yield '<span class="notice">For research, not for diagnosis</span>\n'
    yield "".join(f'<p class="soft">{escape(line)}</p>\n' for line in lines(answers))
    yield (
        '<p class="soft">Numbers of all readers are means of the readers’ numbers. Brackets hold 95 %: of a reader’s '
        "shares Wilson’s interval, of other numbers of a reader a bootstrap of cases; of all readers a bootstrap of "
        "readers and cases, or of cases alone for one reader and for agreement between readers.</p>\n</header>\n"
    )


def _task(name: str, key: Key, scores: Scores) -> Iterator[str]:
    rows = [row for row in scores.rows if row.task == name]
    if not rows:
        return
    question = TASKS[name].question.format(finding="…")
    yield f"<section>\n<h2>{escape(TASKS[name].title)}</h2>\n<p>{escape(question)}</p>\n"
    yield '<div class="numbers">\n'
    for row in rows:
        if row.reader == ALL and not row.of and row.measure.startswith(_HEADLINES[name]):
            about = f"{_brackets(row)}n = {row.n:,}"
            yield f"<p>{escape(_words(row))}<b>{in_words(row.value)}</b><small>{about}</small></p>\n"
    yield "</div>\n"
    curves = {reader: curve for (task, reader), curve in scores.curves.items() if task == name}
    if curves:
        yield f'<div class="roc sheet">{_roc(name, curves)}</div>\n'
    readers = list(dict.fromkeys(row.reader for row in rows if row.reader != ALL))
    measures = list(dict.fromkeys((row.measure, row.of) for row in rows))
    cells = {(row.measure, row.of, row.reader): in_words(row.value, row.low, row.high) for row in rows}
    words = {(row.measure, row.of): _words(row) for row in rows}
    lines = [[words[one], *(cells.get((*one, reader), "–") for reader in (ALL, *readers))] for one in measures]
    yield html.table([["", "all readers", *readers], *lines])
    yield "</section>\n"


def _words(row: Row) -> str:
    said = _WORDS.get(row.measure, row.measure)
    if row.measure.startswith("share of "):
        value = row.measure.removeprefix("share of ")
        label = next(choice.label for choice in TASKS[row.task].choices if choice.value == value)
        said = f"share of {value.replace('-', '−')}, {label.lower()}"
    return f"{said}, {row.of}" if row.of else said


def _brackets(row: Row) -> str:
    if math.isnan(row.low) or math.isnan(row.high):
        return ""
    return f"{in_words(row.low)} to {in_words(row.high)}, "


def _roc(name: str, curves: dict[str, Any]) -> str:
    """The curves of the readers: answers with confidence as one scale."""

    def paint(axes: Any) -> None:
        axes.plot((0, 1), (0, 1), color=html.FAINT, linewidth=1, label="_")
        for number, (reader, curve) in enumerate(curves.items()):
            colour = html.SERIES[number % len(html.SERIES)]
            rates = (curve.false_positive_rate, curve.true_positive_rate)
            axes.plot(
                *rates, color=colour, linewidth=1.6, marker="o", markersize=3, label=reader if len(curves) < 9 else "_"
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)

    yes, no = TASKS[name].yes, next(one.value for one in TASKS[name].choices if one.value != TASKS[name].yes)
    return html.plot(f"roc-{name}", f"{yes} called {yes}", f"{no} called {yes}", paint, (4.6, 3.9))


def _end(key: Key) -> Iterator[str]:
    yield "<details>\n<summary>What was done to the images</summary>\n"
    yield "".join(f"<p>{escape(note)}</p>\n" for note in key.notes)
    yield "</details>\n"
