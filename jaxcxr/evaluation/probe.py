"""What a text encoder's states tell of findings, before and after tuning: linear probes, and what words have become."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.evaluation.metrics.features import as_features
from jaxcxr.evaluation.metrics.retrieval import cosines

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverses of the penalty that are tried."""
_STEPS = 100
_RESAMPLES = 1000


class Probe(NamedTuple):
    """A logistic regression: the log-odds of (N, D) are `features @ weights + bias`."""

    weights: np.ndarray
    bias: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The log-odds, (N,)."""
        return features @ self.weights + self.bias


class Texts(NamedTuple):
    """Reports with what is known of them.

    Attributes:
      states: by the encoder's name, its pooled states of the reports, (N, D); D may differ.
      labels: bool (N, K), the findings.
      patients: whose report each is, (N,).
    """

    states: Mapping[str, np.ndarray]
    labels: np.ndarray
    patients: np.ndarray


class Kept(NamedTuple):
    """How much tuned states of words are still those of the base.

    Attributes:
      cosine: the mean of both states of a word; 1 where nothing has changed.
      centred: the same after the mean of the base's states is taken from both. Encoders' states have a large part in
        common, which makes the first near 1 whatever is learnt.
    """

    cosine: float
    centred: float


def fit(features: ArrayLike, labels: ArrayLike, strength: float = 1.0) -> Probe:
    """The logistic regression with the least `strength` · Σ loss + ½ |weights|², by Newton's method in float64.

    The bias is not penalized. `strength` is scikit-learn's C.

    Args:
      features: (N, D), of like scale in every column.
      labels: bool (N,).
      strength: above 0.

    Raises:
      UserError: labels are not bool (N,) or all alike, or a feature is not finite.
    """
    x, truth = as_features("text", features), np.asarray(labels)
    if truth.shape != x.shape[:1] or truth.dtype != np.bool_ or len(np.unique(truth)) != 2:
        raise UserError(
            f"labels: are {truth.dtype} of shape {truth.shape}; give bool ({len(x)},), some true, some false"
        )
    design = np.column_stack([x, np.ones(len(x))])
    penalty = np.append(np.ones(x.shape[1]), 0.0)
    found = np.append(np.zeros(x.shape[1]), np.log(truth.mean() / (1 - truth.mean())))
    loss = _loss(design, truth, penalty, strength, found)
    for _ in range(_STEPS):
        chance = _logistic(design @ found)
        gradient = strength * design.T @ (chance - truth) + penalty * found
        curvature = design.T @ (design * (strength * chance * (1 - chance))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        slope, length = float(gradient @ step), 1.0
        if slope <= 1e-12 * max(loss, 1.0):  # what is left to gain is half of that
            found = found - step
            break
        while (new := _loss(design, truth, penalty, strength, found - length * step)) > loss - 1e-4 * length * slope:
            length /= 2  # ends, as the loss falls along the step
        found, loss = found - length * step, new
    return Probe(found[:-1], float(found[-1]))


def probe(
    train: Texts,
    test: Texts,
    findings: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[list[Row], list[str]]:
    """Rows of how well a linear probe of each encoder tells each finding, and what was left out, a line each.

    Each state is standardized by the train reports. The penalty is the one of best AUROC on a fifth of the train
    patients, and the probe is then fitted to all of them. `probe_auroc` is that on the test reports. `probe_gain` is
    what an encoder has more than the first, on the same resamples of patients. A row without a group is the mean over
    findings.

    Args:
      train: reports to learn from.
      test: reports of other patients, of the same encoders.
      findings: names of the labels' columns, (K,).
      strengths: as `fit` takes them; those that are tried.
      resamples: of the intervals.
      seed: of the resamples and of the fifth.

    Raises:
      UserError: a patient is in both, an encoder in one alone, shapes differ, or a state is not finite.
    """
    _require(train, test, findings)
    told = [(part.labels.any(axis=0) & ~part.labels.all(axis=0)) for part in (train, test)]
    there = np.flatnonzero(told[0] & told[1]).tolist()
    left_out = [
        f"probe: {name} is in no report to learn from or to test on, or in each"
        for place, name in enumerate(findings)
        if place not in there
    ]
    if not there:
        return [], left_out
    groups = [*(f"finding={findings[place]}" for place in there), ""]
    labels, tail = test.labels[:, there], _tail(train.patients, seed)
    scores = {
        name: np.column_stack(
            [_scores(states, test.states[name], train.labels[:, place], tail, strengths) for place in there]
        )
        for name, states in train.states.items()
    }

    def as_rows(name: str, metric: str, *compared: np.ndarray) -> Iterator[Row]:
        values = np.column_stack([labels, *compared])
        low, high = bootstrap(values, test.patients, lambda part: _aurocs(part, len(there)), resamples, seed)
        for group, *numbers in zip(groups, _aurocs(values, len(there)), low, high, strict=True):
            value, start, end = (None if np.isnan(number) else float(number) for number in numbers)
            yield Row(name, metric, "linear-probe", group, value, start, end, None, None, None, len(values))

    rows: list[Row] = []
    base = next(iter(scores.values()))
    for name, own in scores.items():
        rows += as_rows(name, "probe_auroc", own)
        rows += as_rows(name, "probe_gain", own, base) if own is not base else ()
    return rows, left_out


def vocabulary_kept(base: ArrayLike, tuned: ArrayLike) -> Kept:
    """What tuning has left of the base's words.

    Args:
      base: the base encoder's states of words or prompts, (N, D).
      tuned: the tuned encoder's of the same, (N, D).

    Raises:
      UserError: the shapes differ, a number is not finite, or a state is zero.
    """
    one, other = as_features("base", base), as_features("tuned", tuned)
    whole = float(cosines(one, other).mean())
    centre = one.mean(axis=0)
    apart = (one != centre).any(axis=1) & (other != centre).any(axis=1)
    return Kept(whole, float(cosines(one[apart] - centre, other[apart] - centre).mean()) if apart.any() else np.nan)


def _require(train: Texts, test: Texts, findings: Sequence[str]) -> None:
    if list(train.states) != list(test.states) or not train.states:
        raise UserError(f"probe: encoders are {[*train.states]} of train and {[*test.states]} of test; give the same")
    for what, texts in (("train", train), ("test", test)):
        shape = len(texts.patients), len(findings)
        lengths = {name: len(states) for name, states in texts.states.items()}
        if texts.labels.shape != shape or texts.labels.dtype != np.bool_ or {*lengths.values()} != {shape[0]}:
            raise UserError(
                f"probe: {what} labels are {texts.labels.dtype} {texts.labels.shape}, states of {lengths}; "
                f"give bool {shape}, and a state for each patient"
            )
    if shared := {*train.patients.tolist()} & {*test.patients.tolist()}:
        raise UserError(f"probe: {len(shared)} patients are in train and in test; split by patient")


def _tail(patients: np.ndarray, seed: int) -> np.ndarray:
    """The images of a fifth of the patients, drawn at random, bool (N,)."""
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    return np.random.default_rng(seed).permutation(count)[patient] < count // 5


def _scores(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, tail: np.ndarray, strengths: Sequence[float]
) -> np.ndarray:
    """What the probe of one finding says of the test reports, (M,)."""
    known, new = as_features("train", train), as_features("test", test)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1
    known, new = (known - mean) / spread, (new - mean) / spread
    return fit(known, labels, _strength(known, labels, tail, strengths)).scores(new)


def _strength(features: np.ndarray, labels: np.ndarray, tail: np.ndarray, strengths: Sequence[float]) -> float:
    """The strength of best AUROC on the tail; the middle one where either part has one class alone."""
    if len(strengths) == 1 or len({*labels[tail]}) < 2 or len({*labels[~tail]}) < 2:
        return sorted(strengths)[len(strengths) // 2]
    fitted = [fit(features[~tail], labels[~tail], strength) for strength in strengths]
    return strengths[int(np.argmax([auroc(labels[tail], one.scores(features[tail])) for one in fitted]))]


def _aurocs(values: np.ndarray, count: int) -> np.ndarray:
    """AUROC by finding and on average, (count + 1,); what it is more than another's where that is given.

    `values` has `count` columns of labels, of scores and, it may be, of the other's scores.
    """
    labels, *scores = np.split(values, values.shape[1] // count, axis=1)
    found = [[auroc(truth > 0, one) for truth, one in zip(labels.T, part.T, strict=True)] for part in scores]
    difference = np.array(found[0]) - (np.array(found[1]) if len(found) > 1 else 0)
    known = difference[~np.isnan(difference)]
    return np.append(difference, known.mean() if len(known) else np.nan)


def _loss(design: np.ndarray, truth: np.ndarray, penalty: np.ndarray, strength: float, found: np.ndarray) -> float:
    odds = design @ found
    # log(1 + exp(z)) − y z, without overflow.
    return float(strength * (np.logaddexp(0, odds) - truth * odds).sum() + penalty @ np.square(found) / 2)


def _logistic(odds: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -odds))
