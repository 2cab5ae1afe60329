"""Whether generated images show what their prompts asked for, as a classifier of real images sees them.

RoentGen's evaluation (arXiv 2211.12737) is the AUROC of what was asked for, ChexGen's the correlation of scores. A
classifier errs on real images too, so the same numbers of real images and their labels stand beside each.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics.classification import (
    accuracy_at,
    auroc,
    best_f1_threshold,
    brier,
    expected_calibration_error,
    f1_at,
    pearson,
)

_RESAMPLES = 1000
# By finding and of all together; the last is of all together alone.
_METRICS = ("auroc", "accuracy", "f1", "pearson", "expected_calibration_error", "brier", "pearson_pooled")
_Number = tuple[float | None, float | None, float | None]
_NOTHING: _Number = (None, None, None)

# Names of one finding, the first of which stands for all; written as `plain` leaves them.
_SYNONYMS = (
    ("effusion", "effusions", "pleural effusion", "pleural effusions"),
    ("edema", "oedema", "pulmonary edema", "pulmonary oedema"),
    ("cardiomegaly", "enlarged heart"),
    ("enlarged cardiomediastinum", "enlarged cardiomediastinal silhouette"),
    ("lung opacity", "airspace opacity", "pulmonary opacity"),
    ("lung lesion", "lung lesions"),
    ("nodule", "lung nodule", "pulmonary nodule"),
    ("mass", "lung mass", "pulmonary mass"),
    ("fibrosis", "pulmonary fibrosis"),
    ("emphysema", "pulmonary emphysema"),
    ("fracture", "fractures", "rib fracture"),
    ("hernia", "hiatal hernia", "hernia, hiatal"),
    ("support devices", "support device", "device", "devices"),
    ("no finding", "no findings", "normal"),
)
_MEANS = {name: names[0] for names in _SYNONYMS for name in names}
# A classifier's finding that holds the other, taken where it has no output of that name.
_WIDER = {"nodule": "lung lesion", "mass": "lung lesion"}


class Matched(NamedTuple):
    """Which of the findings asked for a classifier sees.

    Attributes:
      names: the classifier's names of those it sees, (K,).
      asked: the place of each among what was asked for, (K,).
      outputs: its place among the outputs, (K,).
      asked_alone: names that no output has.
      outputs_alone: outputs that nobody asked for.
    """

    names: tuple[str, ...]
    asked: tuple[int, ...]
    outputs: tuple[int, ...]
    asked_alone: tuple[str, ...]
    outputs_alone: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Images of which a classifier has said its part.

    Attributes:
      names: the classifier's names of the findings, (K,).
      truth: what was asked for; of real images, their labels; bool (N, K).
      scores: the classifier's, (N, K), of any unit.
      units: what is drawn as one for intervals, (N,): the prompt of a generated image, the patient of a real one.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray
    units: np.ndarray

    def __post_init__(self) -> None:
        shape = len(self.units), len(self.names)
        if (
            self.truth.shape != shape
            or self.scores.shape != shape
            or self.truth.dtype != np.bool_
            or not len(self.units)
        ):
            raise UserError(
                f"findings: are {self.truth.dtype} {self.truth.shape} with scores {self.scores.shape}; "
                f"give bool and scores {shape}, of one image or more"
            )


def match(asked: Sequence[str], outputs: Sequence[str]) -> Matched:
    """Matches names of findings, as prompts' and phantoms' labels, CheXpert's and torchxrayvision's write them.

    Names are equal but for case, spaces, `_` and `-`, or by a table of synonyms. A nodule or a mass is matched with the
    wider `Lung Lesion` where the classifier has no output for it and nothing else is matched with that.

    Args:
      asked: names of what was asked for.
      outputs: the classifier's names.
    """
    wanted, seen = [_plain(name) for name in asked], [_plain(name) for name in outputs]
    place_of: dict[int, int] = {}  # of an output, among what was asked for
    for place, name in enumerate(wanted):
        if name in seen:
            place_of.setdefault(seen.index(name), place)
    wider = [
        (seen.index(_WIDER[name]), place)
        for place, name in enumerate(wanted)
        if name not in seen and _WIDER.get(name) in seen
    ]
    if len(wider) == 1:
        place_of.setdefault(*wider[0])
    chosen = sorted(place_of)
    places = [place_of[output] for output in chosen]
    return Matched(
        tuple(outputs[output] for output in chosen),
        tuple(places),
        tuple(chosen),
        tuple(name for place, name in enumerate(asked) if place not in places),
        tuple(name for output, name in enumerate(outputs) if output not in chosen),
    )


def scored(
    truth: np.ndarray, names: Sequence[str], scores: np.ndarray, outputs: Sequence[str], units: Sequence[str]
) -> tuple[Scored, Matched]:
    """The findings that both sides have, in the classifier's order, and which those are.

    Args:
      truth: bool (N, A).
      names: of its columns, (A,).
      scores: (N, C).
      outputs: names of their columns, (C,).
      units: (N,), as of `Scored`.

    Raises:
      UserError: the shapes differ, or no finding is matched.
    """
    if truth.ndim != 2 or scores.ndim != 2 or (truth.shape[1], scores.shape[1]) != (len(names), len(outputs)):
        raise UserError(
            f"findings: are of shapes {truth.shape} and {scores.shape}, with {len(names)} and {len(outputs)} names"
        )
    found = match(names, outputs)
    if not found.names:
        sees, wanted = (", ".join(which)[:200] for which in (outputs, names))
        raise UserError(f"findings: the classifier sees none of {wanted}; its outputs are {sees}")
    return Scored(found.names, truth[:, found.asked], scores[:, found.outputs], np.asarray(units)), found


def thresholds(validation: Scored) -> dict[str, float]:
    """The score of the best F1 by finding, on real images for validation; NaN where none has the finding."""
    return {
        name: best_f1_threshold(validation.truth[:, place], validation.scores[:, place])
        for place, name in enumerate(validation.names)
    }


def faithfulness(
    generated: Scored,
    real: Scored | None,
    *,
    of: str,
    classifier: str,
    cuts: Mapping[str, float] | None = None,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[list[Row], list[str]]:
    """Rows of AUROC, accuracy, F1, calibration and correlations by finding, and what was left out, a line each.

    A row without a group is the mean over findings: over those that have a value in both sets. `pearson_pooled`, as
    ChexGen reports it, is the correlation of all N·K scores at once. Calibration is that of scores from 0 to 1, with
    what was asked for. Intervals hold 95 % of resamples of the units.

    Args:
      generated: images, with what was asked for.
      real: images of other patients with their labels, for the floors; None where there are none.
      of: the generated set's name.
      classifier: its name.
      cuts: scores from which on a finding is called present, by finding, as of `thresholds`; chosen on the generated
        images they would flatter them. Without one there is neither accuracy nor F1.
      resamples: of the intervals.
      seed: of the resamples.

    Raises:
      UserError: a score is not finite, or the shapes differ.
    """
    names = generated.names
    limits = np.array([(cuts or {}).get(name, np.nan) for name in names])
    ours = _Counted(generated, names, limits)
    common = ours.known()
    floors = None
    if real is not None:
        floors = _Counted(real, names, limits)
        common &= floors.known()
    numbers = ours.with_interval(common, resamples, seed)
    beside = floors.with_interval(common, resamples, seed) if floors else [_NOTHING] * len(numbers)
    rows = []
    for place, (one, floor) in enumerate(zip(numbers, beside, strict=True)):
        metric, finding = divmod(place, len(names) + 1)
        group = f"finding={names[finding]}" if finding < len(names) else ""
        if one[0] is not None:
            rows.append(Row(of, _METRICS[metric], classifier, group, *one, *floor, len(generated.units)))
    return rows, [*_left_out(of, generated, floors)]


class _Counted:
    """The metrics of a set by finding of `names`; they are NaN where the set has no such finding."""

    def __init__(self, scored: Scored, names: Sequence[str], limits: np.ndarray):
        columns = [scored.names.index(name) if name in scored.names else None for name in names]
        nothing = np.zeros(len(scored.units))
        self._rows = np.column_stack(
            [
                nothing if column is None else part[:, column]
                for part in (scored.truth, scored.scores)
                for column in columns
            ]
        )
        self._limits = np.where([column is None for column in columns], np.nan, limits)
        self._units = scored.units
        self._are_probabilities = scored.scores.min() >= 0 and scored.scores.max() <= 1

    def known(self) -> np.ndarray:
        """Which metrics there are, bool (6, K)."""
        return ~np.isnan(self._by_finding(self._rows))

    def with_interval(self, common: np.ndarray, resamples: int, seed: int) -> list[_Number]:
        """All numbers as (value, low, high), metric by metric: those of the findings, then of all together.

        Args:
          common: bool (6, K), the findings whose mean is taken.
          resamples: of the units.
          seed: of the resamples.
        """
        value = self._all(common, self._rows)
        there = ~np.isnan(value)
        low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
        if there.any():
            low[there], high[there] = bootstrap(
                self._rows, self._units, lambda rows: self._all(common, rows)[there], resamples, seed
            )
        return [(_known(one), _known(start), _known(end)) for one, start, end in zip(value, low, high, strict=True)]

    def _by_finding(self, rows: np.ndarray) -> np.ndarray:
        truth, scores = np.split(rows, 2, axis=1)
        found = [
            (
                auroc(present > 0, score),
                accuracy_at(present > 0, score, limit),
                f1_at(present > 0, score, limit),
                pearson(score, present),
                expected_calibration_error(present > 0, score) if self._are_probabilities else np.nan,
                brier(present > 0, score) if self._are_probabilities else np.nan,
            )
            for present, score, limit in zip(truth.T, scores.T, self._limits, strict=True)
        ]
        return np.array(found).T

    def _all(self, common: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = self._by_finding(rows)
        means = [_mean(line[mask]) for line, mask in zip(found, common, strict=True)]
        truth, scores = np.split(rows, 2, axis=1)
        pooled = pearson(scores[:, common[0]].ravel(), truth[:, common[0]].ravel())
        last = np.append(np.full(found.shape[1], np.nan), pooled)
        return np.append(np.column_stack([found, means]), last)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(name: str) -> str:
    words = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return _MEANS.get(words, words)


def _left_out(of: str, generated: Scored, floors: _Counted | None) -> Iterator[str]:
    """Yields a line for each finding whose AUROC, or that of real images, is not known."""
    for place, name in enumerate(generated.names):
        asked, total = int(generated.truth[:, place].sum()), len(generated.units)
        if asked in (0, total):
            yield f"{of}: {name} was asked of {asked} of {total} images; AUROC needs images with it and without"
        elif floors is not None and not floors.known()[0, place]:
            yield f"{of}: {name} has no floor: no real image has it, or each"
