"""Whether generated images show the labels that they were asked for, as a classifier of real radiographs sees them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.extractors import xrv
from jaxcxr.evaluation.faithfulness import Scored, faithfulness, scored, thresholds
from jaxcxr.evaluation.metrics.classification import confusion
from jaxcxr.evaluation.pictures import read_pictures, readable
from jaxcxr.evaluation.sets import ImageSet, Item, labelled
from jaxcxr.models.named import with_parameters

_AT_ONCE = 256  # images in memory
_XRV = "xrv="
CONFUSION = "confusion"
"""The metric whose groups are `asked=…,seen=…`."""


class Scorer(NamedTuple):
    """A classifier of radiographs.

    Attributes:
      name: for the rows of an evaluation.
      outputs: names of its classes, (K,).
      scores: images uint8 (N, S, S) -> float32 (N, K).
    """

    name: str
    outputs: tuple[str, ...]
    scores: Callable[[np.ndarray], np.ndarray]


def is_scorer(text: str) -> bool:
    """Whether a text names a classifier of radiographs: the folder of one, or xrv=FILE."""
    return text.startswith(_XRV) or Path(text).is_dir()


def open_scorer(text: str) -> Scorer:
    """Reads the classifier that a text names: the workdir of one that was trained here, or torchxrayvision's, xrv=FILE.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if text.startswith(_XRV):
        return Scorer("xrv", xrv.PATHOLOGIES, _torchxrayvision(Path(text.removeprefix(_XRV))))
    from jaxcxr.evaluation.classifiers import load_classifier

    found = load_classifier(text)
    return Scorer(Path(text).name, found.names, found)


def _torchxrayvision(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    weights = xrv.read_classifier(file)
    network = nnx.eval_shape(lambda: xrv.classifier(nnx.Rngs(0)))
    prepare = xrv.XRV.preprocessings["xrv"]

    def compute(values: Mapping[str, jax.Array], batch: jax.Array) -> jax.Array:
        model = with_parameters(network, values)
        with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise
            return xrv.scores(model.logits(model(batch)))

    compiled = InBatches(compute, weights)

    def scores(images: np.ndarray) -> np.ndarray:
        return np.concatenate([*compiled(np.stack([prepare(Image.fromarray(image)) for image in images]))])

    return scores


def evaluate_asked(
    real: ImageSet, generated: Sequence[ImageSet], by: Scorer, size: int, seed: int
) -> tuple[list[Row], list[str]]:
    """Rows of AUROC, accuracy, F1 and correlations by finding for each set, and what was left out, a line each.

    Half of the real patients choose the scores from which on a finding is called present; the other half are the floor.

    Args:
      real: real images with their labels.
      generated: images with the labels that they were asked for.
      by: the classifier.
      size: side in pixels that images are brought to, padded to a square; 0 for squares as they are.
      seed: of the halves and of the intervals.

    Raises:
      UserError: no real image has a label, or none of the labels is one of the classifier's.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    truth, lines = _seen(real, by, size, lambda item: item.patient)
    if truth is None:
        raise UserError(f"{real.name}: none of its images has a label; {by.name} needs some to be compared with")
    left_out += lines
    units = np.unique(truth.units)
    if len(units) < 2:
        raise UserError(f"{real.name}: has labels of one patient; {by.name} needs two patients or more")
    first = np.isin(truth.units, np.random.default_rng(seed).permutation(units)[: len(units) // 2])
    for images in generated:
        shown, lines = _seen(images, by, size, lambda item: item.text or item.stamp)
        left_out += lines
        if shown is None:
            left_out.append(f"{images.name}: {by.name} has nothing to compare; no image says what it was asked for")
            continue
        both = [name for name in shown.names if name in truth.names]
        if not both:
            raise UserError(f"{images.name}: was asked for {', '.join(shown.names)}; no real image has such a label")
        if absent := sorted({*shown.names} - {*both}):
            left_out.append(f"{images.name}: no real image has the label {', '.join(absent)}")
        chosen, floor = (_part(truth, both, mask) for mask in (first, ~first))
        one, cuts = _part(shown, both, slice(None)), thresholds(chosen)
        own, more = faithfulness(one, floor, of=images.name, classifier=by.name, cuts=cuts, seed=seed)
        rows += own + _confusion(one, cuts, images.name, by.name)
        left_out += more
    return rows, left_out


def _confusion(one: Scored, cuts: Mapping[str, float], of: str, classifier: str) -> list[Row]:
    """What is seen in images that were asked for one finding and not for another, as shares."""
    shares = confusion(one.truth, one.scores >= np.array([cuts[name] for name in one.names]))
    none = (None, None, None, None, None)
    return [
        Row(of, CONFUSION, classifier, f"asked={asked},seen={seen}", float(shares[i, j]), *none, len(one.units))
        for i, asked in enumerate(one.names)
        for j, seen in enumerate(one.names)
        if np.isfinite(shares[i, j])
    ]


def _part(whole: Scored, names: Sequence[str], rows: Any) -> Scored:
    """Some images and findings of what a classifier has seen."""
    columns = [whole.names.index(name) for name in names]
    return Scored(tuple(names), whole.truth[rows][:, columns], whole.scores[rows][:, columns], whole.units[rows])


def _seen(images: ImageSet, by: Scorer, size: int, unit: Callable[[Item], str]) -> tuple[Scored | None, list[str]]:
    """What the classifier sees in the images that say what they show, by its own names, and what is left out of it."""
    named = [item for item in images.items if item.groups.get("label")]
    kept, broken = readable(dataclasses.replace(images, items=named), size)
    lines = [f"{images.name}: {broken} images cannot be read"] if broken else []
    labels = sorted({label for item in kept.items for label in item.groups["label"]} - {"no finding", "No Finding"})
    if not labels:
        return None, lines
    there = labelled(kept.items, labels)
    scores = np.concatenate([by.scores(batch) for batch in _batches(kept, size)])
    found, matched = scored(there, labels, scores, by.outputs, [unit(item) for item in kept.items])
    if matched.asked_alone:
        lines.append(f"{images.name}: {by.name} has no output for {', '.join(matched.asked_alone)}")
    return found, lines


def _batches(images: ImageSet, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images.items), _AT_ONCE):
        yield np.stack([one.pixels for one in read_pictures(images, size, images.items[start : start + _AT_ONCE])])
