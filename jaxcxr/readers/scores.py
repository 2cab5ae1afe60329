"""The scores of a study: rows of numbers with intervals, by task, reader and class of images."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxcxr.evaluation.metrics.classification import RocCurve, auroc, roc_curve
from jaxcxr.phantoms.scores import wilson
from jaxcxr.readers.answers import Answers
from jaxcxr.readers.key import Key, Truth
from jaxcxr.readers.statistics import (
    LEVELS,
    cohen_kappa,
    detection,
    fleiss_kappa,
    intervals,
    krippendorff_alpha,
    signed_scores,
)
from jaxcxr.readers.tasks import LEFT, REAL, SYNTHETIC, TASKS, Task

ALL = "all"
"""In the place of a reader's code: the readers together."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A number.

    Attributes:
      task: a name of `TASKS`.
      reader: a code, or `ALL`.
      measure: what it is, as `accuracy`.
      of: of which images: real, synthetic, or a set; empty for all.
      value: the number; NaN where it is not defined.
      low: lower end of its 95 % interval.
      high: upper end.
      interval: how that was found: wilson, readers and cases, cases; empty where there is none.
      n: answers that it is of.
    """

    task: str
    reader: str
    measure: str
    of: str
    value: float
    low: float
    high: float
    interval: str
    n: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """The rows, and the ROC curves of readers by task and code."""

    rows: Sequence[Row]
    curves: dict[tuple[str, str], RocCurve]


@dataclasses.dataclass(frozen=True)
class _Table:
    """The answers of a task, without repeats.

    Attributes:
      name, task: which.
      readers: codes, (R,).
      truths: of the items, (N,).
      numbers, confidence, ms: of the answers, (R, N); NaN where there is none.
      kinds: real or synthetic, or of a pair empty, (N,).
    """

    name: str
    task: Task
    readers: Sequence[str]
    truths: Sequence[Truth]
    numbers: np.ndarray
    confidence: np.ndarray
    ms: np.ndarray
    kinds: np.ndarray

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Which items are of each class, and of each generated set where there are several; bool (N,) by name."""
        for kind in (REAL, SYNTHETIC):
            if (self.kinds == kind).any():
                yield kind, self.kinds == kind
        sets = np.array(["" if len(truth.sets) > 1 else truth.sets[0] for truth in self.truths])
        names = sorted(set(sets[self.kinds == SYNTHETIC]))
        if len(names) > 1:
            for name in names:
                yield name, sets == name


def score(answers: Answers, key: Key, resamples: int = 1000, seed: int = 0) -> Scores:
    """Every number of a study; repeats count for the agreement within readers alone."""
    rows: list[Row] = []
    curves: dict[tuple[str, str], RocCurve] = {}
    for name, task in TASKS.items():
        table = _table(name, answers, key)
        if not len(table.truths) or np.isnan(table.numbers).all():
            continue
        draws = (resamples, seed)
        if task.yes:
            rows += _yes_or_no(table, draws)
            curves |= {(name, reader): curve for reader, curve in _curves(table)}
        elif task.scale:
            rows += _scale(table, draws)
        else:
            rows += _preference(table, draws)
        rows += [*_between(table, draws), *_within(name, answers, key), *_times(table)]
    return Scores(rows, curves)


def _table(name: str, answers: Answers, key: Key) -> _Table:
    items = [item for item, truth in key.items.items() if truth.task == name and not truth.repeat_of]
    truths = [key.items[item] for item in items]
    kinds = np.array(["" if len(truth.sets) > 1 else key.sets[truth.sets[0]] for truth in truths], "U9")
    numbers, confidence, ms = (answers.table(items, field) for field in ("number", "confidence", "ms"))
    return _Table(name, TASKS[name], list(answers.of), truths, numbers, confidence, ms, kinds)


def _yes_or_no(table: _Table, draws: tuple[int, int]) -> Iterator[Row]:
    """Accuracy, rates of each class apart, d′, criterion and the area under the ROC curve."""
    yes = table.task.numbers[table.task.yes]
    truth = np.array([table.task.numbers[item.expected] for item in table.truths]) == yes
    right = np.where(np.isnan(table.numbers), np.nan, (table.numbers == yes) == truth)
    called = np.where(np.isnan(table.numbers), np.nan, table.numbers == yes)
    for name, which in (("", np.ones(len(truth), bool)), *table.groups()):
        yield from _share(table, "accuracy", right[:, which], draws, name, strata=truth[which])
    rates = (("sensitivity", truth, called), ("specificity", ~truth, 1 - called))
    for measure, which, values in rates:
        yield from _share(table, measure, values[:, which], draws, "")
        if table.name != "real":  # where the classes are the truth
            for name, of in table.groups():
                yield from _share(table, measure, values[:, which & of], draws, name)
    signed = np.where(np.isnan(called), np.nan, signed_scores(called == 1, table.confidence))
    measures = {
        "d_prime": lambda answered, where: _detect(called, truth, answered, where).sensitivity,
        "criterion": lambda answered, where: _detect(called, truth, answered, where).criterion,
        "auc": lambda reader, where: _area(signed, truth, reader, where),
    }
    yield from _of_readers(table, measures, draws, truth)


def _detect(called: np.ndarray, truth: np.ndarray, reader: int, cases: np.ndarray) -> Any:
    said, is_so = called[reader, cases], truth[cases]
    known = ~np.isnan(said)
    yes = said == 1
    return detection(
        int((yes & is_so).sum()), int((known & is_so).sum()), int((yes & ~is_so).sum()), int((known & ~is_so).sum())
    )


def _area(signed: np.ndarray, truth: np.ndarray, reader: int, cases: np.ndarray) -> float:
    known = cases[~np.isnan(signed[reader, cases])]
    return auroc(truth[known], signed[reader, known])


def _curves(table: _Table) -> Iterator[tuple[str, RocCurve]]:
    yes = table.task.numbers[table.task.yes]
    truth = np.array([table.task.numbers[item.expected] for item in table.truths]) == yes
    for number, reader in enumerate(table.readers):
        known = ~np.isnan(table.numbers[number])
        if truth[known].any() and not truth[known].all():
            signed = signed_scores(table.numbers[number, known] == yes, table.confidence[number, known])
            yield reader, roc_curve(truth[known], signed)


def _scale(table: _Table, draws: tuple[int, int]) -> Iterator[Row]:
    """Means of each class and their difference; how often each answer was given."""
    groups = dict(table.groups())
    for name, which in groups.items():
        values = table.numbers[:, which]
        yield from _means(table, "mean", values, draws, name)
        for choice in table.task.choices:
            given = np.where(np.isnan(values), np.nan, values == table.task.numbers[choice.value])
            yield from _share(table, f"share of {choice.value}", given, draws, name, every=False)
    if REAL in groups and SYNTHETIC in groups:
        real, synthetic = groups[REAL], groups[SYNTHETIC]

        def difference(reader: int, cases: np.ndarray) -> float:
            said = table.numbers[reader, cases]
            return _mean(said[synthetic[cases]]) - _mean(said[real[cases]])

        yield from _of_readers(table, {"synthetic less real": difference}, draws, synthetic)


def _preference(table: _Table, draws: tuple[int, int]) -> Iterator[Row]:
    """How often each set of a pair of sets was preferred, and how often the left image was."""
    left = np.where(np.isnan(table.numbers), np.nan, table.numbers == table.task.numbers[LEFT])
    pairs = sorted({tuple(sorted(truth.sets)) for truth in table.truths})
    for first, second in pairs:
        which = np.array([tuple(sorted(truth.sets)) == (first, second) for truth in table.truths])
        turned = np.array([truth.sets[0] == first for truth in table.truths])
        preferred = np.where(turned, left, 1 - left)[:, which]
        yield from _share(table, f"prefers {first} to {second}", preferred, draws, "")
    yield from _share(table, "prefers the left image", left, draws, "")


def _share(
    table: _Table,
    measure: str,
    hits: np.ndarray,
    draws: tuple[int, int],
    of: str,
    *,
    strata: np.ndarray | None = None,
    every: bool = True,
) -> Iterator[Row]:
    """The share of hits, (R, N) of 1, 0 and NaN: of each reader with Wilson's interval, and the mean of readers."""
    if not hits.size or np.isnan(hits).all():
        return
    for number, reader in enumerate(table.readers if every else ()):
        known = hits[number][~np.isnan(hits[number])]
        low, high = wilson(int(known.sum()), len(known)) if len(known) else (math.nan, math.nan)
        yield Row(table.name, reader, measure, of, _mean(known), low, high, "wilson" if len(known) else "", len(known))
    yield from _means(table, measure, hits, draws, of, strata=strata, every=False)


def _means(
    table: _Table,
    measure: str,
    values: np.ndarray,
    draws: tuple[int, int],
    of: str,
    *,
    strata: np.ndarray | None = None,
    every: bool = True,
) -> Iterator[Row]:
    """Means of some items' values (R, N), of each reader and over readers."""
    if np.isnan(values).all():  # as of a class that an interrupted reading has not come to
        return
    strata = np.zeros(values.shape[1], int) if strata is None else strata
    function = {measure: lambda reader, cases: _mean(values[reader, cases])}
    counts = (~np.isnan(values)).sum(axis=1)
    yield from _of_readers(table, function, draws, strata, of, counts, every)


def _of_readers(
    table: _Table,
    measures: dict[str, Callable[[int, np.ndarray], float]],
    draws: tuple[int, int],
    strata: np.ndarray,
    of: str = "",
    counts: np.ndarray | None = None,
    every: bool = True,
) -> Iterator[Row]:
    """Measures of a reader and cases, for each reader and as the mean of readers, with bootstrap intervals."""
    counts = (~np.isnan(table.numbers)).sum(axis=1) if counts is None else counts
    cases = np.arange(len(strata))

    def mean(who: np.ndarray, where: np.ndarray) -> np.ndarray:
        values = {reader: [function(reader, where) for function in measures.values()] for reader in set(who.tolist())}
        table = np.array([values[reader] for reader in who.tolist()])
        return np.array([_mean(column[~np.isnan(column)]) for column in table.T])

    def rows(which: np.ndarray, reader: str, how: str) -> Iterator[Row]:
        low, high = intervals(strata, len(which), lambda who, where: mean(which[who], where), *draws)
        for place, (measure, value) in enumerate(zip(measures, mean(which, cases), strict=True)):
            n = int(counts[which].sum())
            yield Row(table.name, reader, measure, of, float(value), float(low[place]), float(high[place]), how, n)

    answered = np.flatnonzero(counts)
    for number in answered if every else ():
        yield from rows(np.array([number]), table.readers[int(number)], "cases")
    yield from rows(answered, ALL, "readers and cases" if len(answered) > 1 else "cases")


def _between(table: _Table, draws: tuple[int, int]) -> Iterator[Row]:
    """Agreement of readers: Fleiss' κ and Krippendorff's α of the answers; α of signed confidences too."""
    if len(table.readers) < 2:
        return
    task, numbers = table.task, table.numbers
    nominal, ordinal = (functools.partial(krippendorff_alpha, level=level) for level in LEVELS)
    of: dict[str, tuple[Callable[[np.ndarray], float], np.ndarray]]
    of = {"fleiss_kappa": (fleiss_kappa, numbers), "alpha_nominal": (nominal, numbers)}
    if task.scale:
        of["alpha_ordinal"] = (ordinal, numbers)
    elif task.yes:
        signed = signed_scores(numbers == task.numbers[task.yes], table.confidence)
        of["alpha_ordinal_of_confidence"] = (ordinal, np.where(np.isnan(numbers), np.nan, signed))
    strata = np.unique(table.kinds, return_inverse=True)[1]
    for measure, (function, values) in of.items():
        # Readers are not drawn: one drawn twice agrees with itself.
        low, high = intervals(strata, 1, functools.partial(_of_cases, function, values), *draws)
        n = int((~np.isnan(values)).sum())
        yield Row(table.name, ALL, measure, "", function(values), float(low), float(high), "cases", n)


def _of_cases(function: Callable[[np.ndarray], float], values: np.ndarray, who: np.ndarray, where: np.ndarray) -> float:
    return function(values[:, where])


def _within(name: str, answers: Answers, key: Key) -> Iterator[Row]:
    """Agreement of each reader with their own answers to the items that came twice."""
    task = TASKS[name]
    again = {item: truth.repeat_of for item, truth in key.items.items() if truth.task == name and truth.repeat_of}
    first, second = answers.table(list(again.values())), answers.table(list(again))
    if task.images > 1:  # the sides are exchanged
        second = sum(task.numbers.values()) - second
    both = ~np.isnan(first) & ~np.isnan(second)
    for number, reader in enumerate(answers.of):
        one, other = first[number][both[number]], second[number][both[number]]
        if len(one):
            low, high = wilson(int((one == other).sum()), len(one))
            yield Row(name, reader, "agrees_with_itself", "", _mean(one == other), low, high, "wilson", len(one))
            kappa = cohen_kappa(one, other, task.level)
            yield Row(name, reader, "kappa_with_itself", "", kappa, math.nan, math.nan, "", len(one))
    if both.sum():
        share = _mean((first == second)[both])
        yield Row(name, ALL, "agrees_with_itself", "", share, math.nan, math.nan, "", int(both.sum()))


def _times(table: _Table) -> Iterator[Row]:
    """Median seconds of an item, with its quartiles in place of an interval."""
    for reader, times in [*zip(table.readers, table.ms, strict=True), (ALL, table.ms)]:
        known = times[~np.isnan(times)] / 1000
        if len(known):
            low, middle, high = np.percentile(known, (25, 50, 75))
            yield Row(table.name, reader, "seconds", "", middle, low, high, "quartiles", len(known))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return float(known.mean()) if len(known) else math.nan
