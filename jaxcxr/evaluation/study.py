"""An augmentation study: whether a classifier learns more with generated images beside or before its real ones."""

import dataclasses
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
from jaxcxr.evaluation.sets import GROUPS, ImageSet
from jaxcxr.training.train import train

REAL = "real"
_GROUPED = ("view", "sex", "age", "race")
_PERSON = ("sex", "age", "race")
_AT_ONCE = 256  # images in memory
Predict = Callable[[Path, ImageSet], tuple[tuple[str, ...], np.ndarray]]
"""(workdir of a classifier, images) -> names of its classes, probabilities (N, K)."""


class Stage(NamedTuple):
    """A training: on which folders, with their weights, for how many steps."""

    folders: tuple[tuple[str, float], ...]
    steps: int


class Arm(NamedTuple):
    """One way to train; with two stages the second goes on from the first."""

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
    if len(counts) < 1 + len(synthetic):
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


def train_arm(arm: Arm, config: ConfigDict, folder: Path, seed: int) -> Path:
    """Trains an arm, or what is left of it; the workdir of its last stage.

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
        own.data.path, own.data.mixture = stage.folders[0][0], tuple(stage.folders[1:])
        if base:
            own.model.base, own.model.classifier = base, ConfigDict()
        workdir = folder / arm.name.replace(" ", "-").replace(",", "") / f"seed-{seed}-stage-{number + 1}"
        train(own.lock(), workdir)
        base = str(workdir)
    return workdir


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
            names, found = predict(workdir, images)
            _, own = predict(workdir, validation)
            said.append(found)
            truth = _truth(validation, names)
            chosen.append([best_f1_threshold(truth[:, place], own[:, place]) for place in range(len(names))])
        scores[arm], cuts[arm] = np.stack(said), np.array(chosen)
    patients = np.array([item.patient for item in images.items])
    groups: dict[str, np.ndarray] = {}
    for place, item in enumerate(images.items):
        for column in (column for column in GROUPS if column in _GROUPED):
            for value in item.groups.get(column, ()):
                groups.setdefault(f"{column}={value}", np.zeros(len(patients), bool))[place] = True
    parts = [[item.groups.get(column, ()) for column in _PERSON] for item in images.items]
    persons = np.array(["|".join(value[0] for value in part) if all(part) else "" for part in parts])
    return Predictions(images.name, names, _truth(images, names), patients, groups, persons, scores, cuts)


def _truth(images: ImageSet, names: Sequence[str]) -> np.ndarray:
    return np.array([[name in item.groups.get("label", ()) for name in names] for item in images.items], bool)


def rows(found: Predictions, resamples: int = 1000, seed: int = 0) -> Iterator[Row]:
    """Yields AUROC by arm, its gain over the real arm, and how unequal the arms are.

    A value is the mean of the seeds' runs; without a group it is the mean over classes too. Intervals are bootstraps by
    patient, of a gain by the same resamples on both sides. `underdiagnosis_gap` is the largest less the smallest share
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
    yield from _gaps(found)


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
            np.nanmean([auroc(truth[:, place], drawn[:, width * run + place]) for place in range(width)])
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


def _gaps(found: Predictions) -> Iterator[Row]:
    known = found.persons != ""
    sick = found.truth[known].any(axis=1)
    if not sick.any() or len(np.unique(found.persons[known][sick])) < 2:
        return
    for name, runs in found.scores.items():
        gaps = [
            underdiagnosis(~(run[known] >= cut).any(axis=1), sick, found.persons[known].tolist()).gap
            for run, cut in zip(runs, found.cuts[name], strict=True)
        ]
        low, high = (float(np.min(gaps)), float(np.max(gaps))) if len(gaps) > 1 else (None, None)
        gap = float(np.mean(gaps))
        yield Row(
            name,
            "underdiagnosis_gap",
            f"classifier/{found.name}",
            "",
            gap,
            low,
            high,
            None,
            None,
            None,
            int(known.sum()),
        )
