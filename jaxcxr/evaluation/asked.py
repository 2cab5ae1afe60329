"""Whether generated images show the labels that they were asked for, as a classifier of real radiographs sees them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.batches import in_batches
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.extractors import xrv
from jaxcxr.evaluation.faithfulness import Judged, faithfulness, judge, thresholds
from jaxcxr.evaluation.pictures import read_pictures
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.models.named import with_parameters

_AT_ONCE = 256  # images in memory
_XRV = "xrv="


class Judge(NamedTuple):
    """A classifier of radiographs.

    Attributes:
      name: for the rows of an evaluation.
      outputs: names of its classes, (K,).
      scores: images uint8 (N, S, S) -> float32 (N, K).
    """

    name: str
    outputs: tuple[str, ...]
    scores: Callable[[np.ndarray], np.ndarray]


def is_judge(text: str) -> bool:
    """Whether a text names a classifier of radiographs: the folder of one, or xrv=FILE."""
    return text.startswith(_XRV) or Path(text).is_dir()


def open_judge(text: str) -> Judge:
    """Reads the classifier that a text names: the workdir of one that was trained here, or torchxrayvision's, xrv=FILE.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if text.startswith(_XRV):
        return Judge("xrv", xrv.PATHOLOGIES, _torchxrayvision(Path(text.removeprefix(_XRV))))
    from jaxcxr.evaluation.classifiers import load_classifier

    found = load_classifier(text)
    return Judge(Path(text).name, found.names, found)


def _torchxrayvision(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    weights = xrv.read_classifier(file)
    network = nnx.eval_shape(lambda: xrv.classifier(nnx.Rngs(0)))
    prepare = xrv.XRV.preprocessings["xrv"]

    def compute(values: Mapping[str, jax.Array], batch: jax.Array) -> jax.Array:
        model = with_parameters(network, values)
        with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise
            return xrv.scores(model.logits(model(batch)))

    def scores(images: np.ndarray) -> np.ndarray:
        inputs = np.stack([prepare(Image.fromarray(image)) for image in images])
        return np.concatenate([*in_batches(compute, weights, (inputs,))])

    return scores


def judged(
    real: ImageSet, generated: Sequence[ImageSet], by: Judge, size: int, seed: int
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
    kept, names, scores = _scored(real, by, size)
    if not names:
        raise UserError(f"{real.name}: none of its images has a label; {by.name} needs some to be compared with")
    patients = np.array([item.patient for item in kept])
    truth = _truth(kept, names)
    unique = np.unique(patients)
    first = np.isin(patients, np.random.default_rng(seed).permutation(unique)[: len(unique) // 2])
    for images in generated:
        drawn, asked, theirs = _scored(images, by, size)
        if not asked:
            left_out.append(f"{images.name}: {by.name} has nothing to compare; no image says what it was asked for")
            continue
        both = [name for name in names if name in asked] or names
        one, found = judge(_truth(drawn, both), both, theirs, by.outputs, [item.text or item.stamp for item in drawn])
        halves = [_part(truth, names, both, scores, by, patients, mask) for mask in (first, ~first)]
        own, more = faithfulness(
            one, halves[1], of=images.name, classifier=by.name, cuts=thresholds(halves[0]), seed=seed
        )
        rows += own
        left_out += more
        if found.asked_alone:
            left_out.append(f"{images.name}: {by.name} has no output for {', '.join(found.asked_alone)}")
    return rows, left_out


def _part(
    truth: np.ndarray,
    names: Sequence[str],
    both: Sequence[str],
    scores: np.ndarray,
    by: Judge,
    patients: np.ndarray,
    mask: np.ndarray,
) -> Judged:
    columns = [list(names).index(name) for name in both]
    return judge(truth[mask][:, columns], both, scores[mask], by.outputs, patients[mask].tolist())[0]


def _truth(items: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    """Which labels each image has, bool (N, len(names))."""
    return np.array([[name in item.groups.get("label", ()) for name in names] for item in items], bool)


def _scored(images: ImageSet, by: Judge, size: int) -> tuple[list[Item], list[str], np.ndarray]:
    """The images that have a label, the labels there are, and the classifier's scores, (N, K)."""
    items = [item for item in images.items if item.groups.get("label")]
    names = sorted({name for item in items for name in item.groups["label"]} - {"no finding", "No Finding"})
    found = [by.scores(batch) for batch in _batches(images, items, size)] if names else []
    return items, names, np.concatenate(found) if found else np.zeros((0, len(by.outputs)), np.float32)


def _batches(images: ImageSet, items: Sequence[Item], size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(items), _AT_ONCE):
        yield np.stack([one.pixels for one in read_pictures(images, size, items[start : start + _AT_ONCE])])
