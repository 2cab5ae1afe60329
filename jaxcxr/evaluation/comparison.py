"""Two sets of features compared: every number beside that of real images, at one n, with an interval by patient."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import METRICS

DRAWS = 20
_LEVEL = 95.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A number of an evaluation: what it is of, its interval, and what real images score.

    Attributes:
      set: the generated set.
      metric: the value's name, as `fd` or `recall`.
      extractor: name and preprocessing of the features, or what else has seen the images; empty for pixels.
      group: what part of both sets, as `label=effusion`; empty for all.
      value: the number.
      low: lower end of its 95 % interval.
      high: upper end.
      floor: the number of real images of other patients in the place of the generated ones; None where there is none.
      floor_low: lower end of its interval.
      floor_high: upper end.
      n: images of each set that a value is of.
    """

    set: str
    metric: str
    extractor: str
    group: str
    value: float | None
    low: float | None
    high: float | None
    floor: float | None
    floor_low: float | None
    floor_high: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set, (N, D), with the patient of each image, (N,); images of unknown patients have one each."""

    values: np.ndarray
    patients: np.ndarray

    def __post_init__(self) -> None:
        if len(self.values) != len(self.patients):
            raise ValueError(f"{len(self.values)} features, but {len(self.patients)} patients")

    def taken(self, rows: np.ndarray) -> "Features":
        """Those of some rows, by index or mask."""
        return Features(self.values[rows], self.patients[rows])


def compare(
    real: Features,
    generated: Features,
    metrics: Sequence[str],
    *,
    of: str,
    extractor: str,
    group: str = "",
    draws: int = DRAWS,
    seed: int = 0,
    halves: bool = True,
) -> tuple[list[Row], list[str]]:
    """The metrics of a generated set against a real one, and which were left out, a line each.

    Each draw takes two halves of the real patients, disjoint, and a half of the generated images, all of one size n:
    half of the smaller set. One half is the reference. The generated images are compared with it, and so is the other
    half: that is the floor, which a perfect generator has. A value is the mean of the draws; its interval holds the
    middle 95 % of them. Halves are drawn without replacement, since doubled images spoil nearest neighbours; the spread
    of a number over halves is the standard error of the whole set's (Politis and Romano 1994, subsampling).

    Args:
      real: features of real images.
      generated: those of generated images.
      metrics: names of `METRICS`.
      of: the generated set's name, for the rows.
      extractor: the features' name, for the rows.
      group: the group's name, for the rows.
      draws: how many.
      seed: of the draws.
      halves: draw them; otherwise whole sets are compared once, as most published numbers are, without floor or
        interval.

    Raises:
      UserError: a name is of no metric.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"metric {unknown[0]!r}: may be {', '.join(METRICS)}")
    parts = list(_halves(real, generated, draws, seed)) if halves else [_whole(real, generated)]
    n = min(len(places) for places in itertools.chain(*parts))  # halves are of patients, who may have several images
    if halves:
        parts = [tuple(places[:n] for places in each) for each in parts]
    wanted, left_out = [], []
    for name in metrics:
        if n >= METRICS[name].least:
            wanted.append(name)
        else:
            place, times = (f" of {group}" if group else ""), (2 if halves else 1)
            left_out.append(
                f"{of}: {name}{place} needs {times * METRICS[name].least} images of each set; there are {times * n}"
            )
    rows: list[Row] = []
    for name in wanted:
        compute = METRICS[name].compute
        ours, floors = [], []
        for number, (reference, drawn, *others) in enumerate(parts):
            ours.append(compute(real.values[reference], generated.values[drawn], number))
            floors += [compute(real.values[reference], real.values[other], number) for other in others]
        for value in METRICS[name].better:
            found = _summary([each[value] for each in ours])
            rows.append(Row(of, value, extractor, group, *found, *_summary([each[value] for each in floors]), n))
    return rows, left_out


def _whole(real: Features, generated: Features) -> tuple[np.ndarray, ...]:
    return np.arange(len(real.values)), np.arange(len(generated.values))


def _halves(real: Features, generated: Features, draws: int, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields places of half of the real images, of half of the generated ones, and of the other real half, whose
    patients are others; none has more than half of the smaller set."""
    n = min(len(real.values), len(generated.values)) // 2
    _, patient = np.unique(real.patients, return_inverse=True)
    count = int(patient.max()) + 1
    for number in range(draws):
        draw = np.random.default_rng((seed, number))
        rank = draw.permutation(count)[patient]
        order = np.lexsort((draw.random(len(patient)), rank))  # images by patient, the patients in a random order
        half = _even_cut(rank[order])
        yield order[:half][:n], draw.permutation(len(generated.values))[:n], order[half:][:n]


def _even_cut(ranks: np.ndarray) -> int:
    """Where to cut ranks in order (N,) so that the halves share none and are as equal as can be."""
    cuts = np.append(np.flatnonzero(np.diff(ranks)) + 1, len(ranks))
    return int(cuts[np.abs(cuts - len(ranks) / 2).argmin()])


def _summary(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Their mean, and the ends of the interval that holds their middle 95 %; what there is none of is None."""
    if not values:
        return None, None, None
    if len(values) == 1:
        return float(values[0]), None, None
    low, high = np.percentile(values, [50 - _LEVEL / 2, 50 + _LEVEL / 2])
    return float(np.mean(values)), float(low), float(high)
