"""What readers exported, read into tables of answers; lines that do not count are counted, by why."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxcxr.data.tables import read_rows
from jaxcxr.errors import UserError
from jaxcxr.readers.key import Key
from jaxcxr.readers.tasks import CONFIDENCE, TASKS

COLUMNS = ("study", "reader", "item", "task", "answer", "confidence", "ms")
_MOST_MS = 24 * 3600 * 1000.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reader's answer to an item.

    Attributes:
      number: the answer as the table of tasks has it in `numbers`.
      confidence: 1 to 5; 0 of a task without.
      ms: milliseconds that the item was in sight.
    """

    number: float
    confidence: int
    ms: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of a study.

    Attributes:
      of: by reader and item, of the readers who have answered anything.
      left_out: how many lines do not count, by why.
      missing: how many items each of these readers has not answered; those who have answered all are left out.
      silent: readers without an answer.
    """

    of: Mapping[str, Mapping[str, Answer]]
    left_out: Mapping[str, int]
    missing: Mapping[str, int]
    silent: Sequence[str]

    def table(self, items: Sequence[str], field: str = "number") -> np.ndarray:
        """A field of the answers to some items, float64 (R, N); NaN where there is none."""
        rows = [
            [getattr(answers[name], field) if name in answers else np.nan for name in items]
            for answers in self.of.values()
        ]
        return np.array(rows, np.float64).reshape(len(self.of), len(items))


def read(files: Sequence[Path], key: Key) -> Answers:
    """Reads files of answers; a file may have several readers, and a reader several files.

    A line does not count where its item or reader is not of the study, where it has no answer of its task, or where
    there is another line of the same reader and item that says something else; of equal lines one counts, with the
    longest time: an item that was looked at again after a file was exported has a longer one in the next file.

    Raises:
      UserError: a file cannot be read or is of another study, or no line counts.
    """
    left_out: collections.Counter[str] = collections.Counter()
    found: dict[tuple[str, str], list[Answer]] = {}
    for file in files:
        for row in _rows(file, key, left_out):
            answer = _answer(row, key)
            if isinstance(answer, str):
                left_out[answer] += 1
            else:
                found.setdefault((row["reader"], row["item"]), []).append(answer)
    of: dict[str, dict[str, Answer]] = {reader: {} for reader in key.readers}
    for (reader, item), answers in found.items():
        if len({(answer.number, answer.confidence) for answer in answers}) > 1:
            left_out["more than one answer of a reader to an item"] += len(answers)
        else:
            of[reader][item] = max(answers, key=lambda answer: answer.ms)
            left_out["there already"] += len(answers) - 1
    if not any(of.values()):
        raise UserError(f"{files[0]}: has no answer that counts ({_in_words(left_out) or 'no lines'}); export it again")
    counts = {why: count for why, count in left_out.items() if count}
    missing = {reader: len(key.items) - len(answers) for reader, answers in of.items() if answers}
    some = {reader: count for reader, count in missing.items() if count}
    silent = [reader for reader, answers in of.items() if not answers]
    return Answers({reader: answers for reader, answers in of.items() if answers}, counts, some, silent)


def _rows(file: Path, key: Key, left_out: collections.Counter[str]) -> Iterator[dict[str, str]]:
    """The lines of a file that are of the study."""
    for line, row in read_rows(file, COLUMNS):
        if row is None:
            left_out["too many or too few fields"] += 1
        elif row["study"] != key.study:
            raise UserError(
                f"{file}: line {line} is of the study {row['study'][:20]!r}, the key of {key.study!r}; give the key of"
                " that study"
            )
        else:
            yield row


def _answer(row: Mapping[str, str], key: Key) -> Answer | str:
    """The answer of a line, or why it does not count."""
    truth = key.items.get(row["item"])
    if row["reader"] not in key.readers:
        return "no reader of the study"
    if truth is None or truth.task != row["task"]:
        return "no item of the study"
    task = TASKS[truth.task]
    if row["answer"] not in task.numbers:
        return "no answer of the task"
    confidence, ms = _number(row["confidence"] or "0"), _number(row["ms"])
    if task.confidence and confidence not in CONFIDENCE:
        return "no confidence from 1 to 5"
    if not 0 <= ms <= _MOST_MS:
        return "no time in milliseconds"
    return Answer(task.numbers[row["answer"]], int(confidence) if task.confidence else 0, ms)


def _number(text: str) -> float:
    """A number, NaN of what is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{why}: {count}" for why, count in counts.items() if count)


def lines(answers: Answers) -> Iterable[str]:
    """What was left out and what is missing, a line each."""
    for why, count in answers.left_out.items():
        yield f"{count} {'line does' if count == 1 else 'lines do'} not count: {why}"
    for reader, count in answers.missing.items():
        yield f"reader {reader} has not answered {count} items"
    for reader in answers.silent:
        yield f"reader {reader} has no answers"
