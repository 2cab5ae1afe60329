"""An augmentation study: whether a classifier learns more with generated images beside or before its real ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.classifiers import load_classifier
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics.classification import auroc, best_f1_threshold, underdiagnosis
from jaxcxr.evaluation.pictures import read_pictures
from jaxcxr.evaluation.sets import ImageSet, by_group, labelled, stamp_of_records
from jaxcxr.training.train import train

REAL = "real"
_GROUPED = ("view", "sex", "age", "race")
_PERSON = ("sex", "age", "race")
_AT_ONCE = 256  # images in memory
_LEAST_SICK = 20  # images of a group; a rate of few is 0 or 1 by chance, and widens the gap
_NO_SICKNESS = ("no finding", "support devices")
Predict = Callable[[Path, ImageSet], tuple[tuple[str, ...], np.ndarray]]
"""(workdir of a classifier, images) -> names of its classes, probabilities (N, K)."""


class Stage(NamedTuple):
    """A training: on which folders, with their weights, for how many steps."""

    folders: tuple[tuple[str, float], ...]
    steps: int


class Arm(NamedTuple):
    """One way to train; with two stages the second begins with the first."""

    name: str
    stages: tuple[Stage, ...]


def arms(
    real: str, synthetic: Sequence[str], steps: int, *, matched: bool = True, pretrained: bool = True
) -> list[Arm]:
    """The arms of a study: real images, generated ones, real ones with the first 1, 2, … generated folders, and a
    pretraining on all generated folders before the real ones.

    An image is seen as often in each of them, so more images mean more steps. With `matched` each is there a second
    time with the steps of the real arm, as otherwise a longer training may pass for better data.

    Args:
      real: the prepared folder of real images.
      synthetic: prepared folders of generated images, such as those of one list of prompts under several seeds.
      steps: of the real arm.
      matched: whether arms are there with equal steps too.
      pretrained: whether the pretraining is there.

    Raises:
      UserError: a folder is not prepared or has no training images, or two are the same.
    """
    counts = {folder: _training_images(folder) for folder in (real, *synthetic)}
    if len({Path(folder).resolve() for folder in counts}) < 1 + len(synthetic):
        raise UserError("--synthetic: names a folder twice; give each once")

    def stage(folders: Sequence[str], length: float) -> Stage:
        # A folder's weight is its share of images, so that each image is drawn as often as any other.
        first = counts[folders[0]]
        return Stage(tuple((folder, counts[folder] / first) for folder in folders), max(1, round(length)))

    def alike(folders: Sequence[str]) -> float:
        return steps * sum(counts[folder] for folder in folders) / counts[real]

    found = [Arm(REAL, (stage([real], steps),))]
    mixed = {"synthetic": list(synthetic)}
    mixed |= {f"real + {number}x": [real, *synthetic[:number]] for number in range(1, len(synthetic) + 1)}
    for name, folders in mixed.items():
        found.append(Arm(name, (stage(folders, alike(folders)),)))
        if matched:
            found.append(Arm(f"{name}, matched", (stage(folders, steps),)))
    if pretrained:
        before = stage(list(synthetic), alike(synthetic))
        found.append(Arm("synthetic, then real", (before, stage([real], steps))))
        if matched:
            halves = stage(list(synthetic), steps / 2), stage([real], steps - round(steps / 2))
            found.append(Arm("synthetic, then real, matched", halves))
    return found


def _training_images(folder: str) -> int:
    count = Summary.require(Path(folder)).splits.get("train", 0)
    if not count:
        raise UserError(f"{folder}: has no images in split 'train'; prepare it with some")
    return count


def common_classes(real: str, synthetic: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The labels that training records of every folder have, and the others.

    Raises:
      UserError: there is none.
    """
    found = [Summary.require(Path(folder)).labels.get("train", {}).keys() for folder in (real, *synthetic)]
    shared = set.intersection(*map(set, found))
    if not shared:
        raise UserError(f"{real}: shares no label with the generated folders; give these the labels of the real images")
    return tuple(sorted(shared)), sorted(set.union(*map(set, found)) - shared)


def train_arm(arm: Arm, config: ConfigDict, folder: Path, seed: int) -> Path | None:
    """Trains an arm, or what is left of it; the workdir of its last stage, or None where it was asked to stop.

    It has exactly the steps of its stages: validation on other images in each arm cannot fairly say when to
    stop, so there is no early stopping, and the weights are the last ones.

    Args:
      arm: what is trained.
      config: of a classifier; data, steps and seed are set here.
      folder: for the workdirs.
      seed: of the run.

    Raises:
      UserError: as `train`.
    """
    base = ""
    for number, stage in enumerate(arm.stages):
        own = ConfigDict(config.to_dict())
        own.seed, own.steps, own.epochs = seed, stage.steps, 0.0
        own.stopping.patience, own.eval_every = 0, 0
        own.data.path, own.data.mixture = stage.folders[0][0], tuple(stage.folders[1:])
        if base:
            own.model.base, own.model.classifier = base, ConfigDict()
        workdir = folder / _name(arm) / f"seed-{seed}-stage-{number + 1}"
        if not train(own.lock(), workdir):
            return None
        base = str(workdir)
    return workdir


def _name(arm: Arm) -> str:
    """The folder of an arm's runs; of other records it is another, so that new images are not taken for learnt."""
    stamps = [stamp_of_records(folder) for stage in arm.stages for folder, _ in stage.folders]
    digest = hashlib.blake2b("/".join(stamps).encode(), digest_size=4).hexdigest()
    return f"{arm.name.replace(' ', '-').replace(',', '')}-{digest}"


def predict(workdir: Path, images: ImageSet, size: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of a classifier's classes, and its probabilities of images, (N, K), brought to `size` pixels."""
    classifier = load_classifier(workdir)
    starts = range(0, len(images.items), _AT_ONCE)
    parts = (read_pictures(images, size, images.items[start : start + _AT_ONCE]) for start in starts)
    return classifier.names, np.concatenate([classifier(np.stack([one.pixels for one in part])) for part in parts])


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What the arms' classifiers say of a test set.

    Attributes:
      name: the set's.
      names: of the classes, (K,).
      truth: bool (N, K).
      patients: (N,).
      groups: bool (N,) by name, as `sex=F`.
      persons: sex, age and race of each image joined, (N,); empty texts where the data have none.
      scores: by arm, a run's probabilities for each seed, (seeds, N, K).
      cuts: by arm, from which probability on a run finds a class, for each seed, (seeds, K), chosen on other images.
    """

    name: str
    names: tuple[str, ...]
    truth: np.ndarray
    patients: np.ndarray
    groups: Mapping[str, np.ndarray]
    persons: np.ndarray
    scores: Mapping[str, np.ndarray]
    cuts: Mapping[str, np.ndarray]


def predictions(
    images: ImageSet, validation: ImageSet, workdirs: Mapping[str, Sequence[Path]], predict: Predict
) -> Predictions:
    """Lets every run of every arm say what it sees.

    Args:
      images: to test on, with labels.
      validation: other images of the real data, with labels, to choose cuts on.
      workdirs: by arm, a run for each seed.
      predict: what a run says of images.
    """
    names: tuple[str, ...] = ()
    scores, cuts = {}, {}
    for arm, runs in workdirs.items():
        said, chosen = [], []
        for workdir in runs:
            own_names, found = predict(workdir, images)
            if names and own_names != names:
                raise UserError(f"{workdir}: tells other classes than {REAL!r} does; name another --out")
            names = own_names
            _, own = predict(workdir, validation)
            said.append(found)
            truth = labelled(validation.items, names)
            chosen.append([best_f1_threshold(truth[:, place], own[:, place]) for place in range(len(names))])
        scores[arm], cuts[arm] = np.stack(said), np.array(chosen)
    patients = np.array([item.patient for item in images.items])
    groups = by_group(images.items, _GROUPED)
    parts = [[item.groups.get(column, ()) for column in _PERSON] for item in images.items]
    persons = np.array(["|".join(value[0] for value in part) if all(part) else "" for part in parts])
    return Predictions(images.name, names, labelled(images.items, names), patients, groups, persons, scores, cuts)


def rows(found: Predictions, resamples: int = 1000, seed: int = 0) -> Iterator[Row]:
    """Yields AUROC by arm, its gain over the real arm, and how unequal the arms are.

    A value is the mean of the seeds' runs; without a group it is the mean over classes too. Intervals are bootstraps by
    patient, of a gain by the same resamples on both sides; they do not hold how much runs of other seeds differ.
    `underdiagnosis_gap` is the largest less the smallest share
    of the sick, by sex, age and race, who are found healthy (Seyyed-Kalantari et al. 2021).
    """
    everyone = np.ones(len(found.patients), bool)
    parts = {"": everyone, **{name: mask for name, mask in found.groups.items() if not mask.all()}}
    for group, mask in parts.items():
        usable = [place for place in range(len(found.names)) if 0 < found.truth[mask, place].sum() < mask.sum()]
        if not usable:
            continue
        columns = [] if group else [(found.names[place], [place]) for place in usable]
        for label, places in [("", usable), *columns]:
            shown = group or (f"label={label}" if label else "")
            yield from _of_classes(found, mask, places, shown, resamples, seed)
    yield from _gaps(found, resamples, seed)


def _of_classes(
    found: Predictions, mask: np.ndarray, places: Sequence[int], group: str, resamples: int, seed: int
) -> Iterator[Row]:
    """AUROC of every arm, the mean over some classes and the seeds, and its gain over the real arm."""
    names = list(found.scores)
    seeds = [len(found.scores[name]) for name in names]
    width = len(places)
    table = np.concatenate(
        [found.truth[mask][:, places], *(run[mask][:, places] for name in names for run in found.scores[name])], axis=1
    )

    def statistic(drawn: np.ndarray) -> np.ndarray:
        truth = drawn[:, :width] > 0
        each = [
            _mean([auroc(truth[:, place], drawn[:, width * run + place]) for place in range(width)])
            for run in range(1, 1 + sum(seeds))
        ]
        return np.array([part.mean() for part in np.split(np.array(each), np.cumsum(seeds)[:-1])])

    def both(drawn: np.ndarray) -> np.ndarray:
        means = statistic(drawn)
        return np.concatenate([means, means - means[names.index(REAL)]])

    values = both(table)
    lows, highs = bootstrap(table, found.patients[mask], both, resamples, seed)
    for place, name in enumerate(names * 2):
        metric = "auroc" if place < len(names) else "auroc_gain"
        if metric == "auroc_gain" and name == REAL:
            continue
        number = (float(values[place]), float(lows[place]), float(highs[place]))
        yield Row(name, metric, f"classifier/{found.name}", group, *number, None, None, None, int(mask.sum()))


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are known; NaN of none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _gaps(found: Predictions, resamples: int, seed: int) -> Iterator[Row]:
    """The underdiagnosis gap of every arm, between groups of 20 sick images or more."""
    sickness = [place for place, name in enumerate(found.names) if name.lower().replace("_", " ") not in _NO_SICKNESS]
    known = found.persons != ""
    persons, patients = found.persons[known], found.patients[known]
    sick = found.truth[known][:, sickness].any(axis=1)
    counts = dict(zip(*np.unique(persons[sick], return_counts=True), strict=True))
    if sum(count >= _LEAST_SICK for count in counts.values()) < 2:
        return
    groups = np.unique(persons, return_inverse=True)
    for name, runs in found.scores.items():
        pairs = zip(runs, found.cuts[name], strict=True)
        healthy = np.stack([~(run[known][:, sickness] >= cut[sickness]).any(axis=1) for run, cut in pairs])
        table = np.concatenate([groups[1][:, None], sick[:, None], healthy.T], axis=1)

        def statistic(drawn: np.ndarray) -> float:
            names = groups[0][drawn[:, 0].astype(int)].tolist()
            ill = drawn[:, 1] > 0
            gaps = [underdiagnosis(column > 0, ill, names, _LEAST_SICK).gap for column in drawn[:, 2:].T]
            return float(np.mean(gaps))

        low, high = bootstrap(table, patients, statistic, resamples, seed)
        number = (statistic(table), float(low), float(high), None, None, None, int(known.sum()))
        yield Row(name, "underdiagnosis_gap", f"classifier/{found.name}", "", *number)
