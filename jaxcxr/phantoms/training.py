"""Trains the classifiers that ship with the package: `python -m jaxcxr.phantoms.training NAME --out FILE`.

A training is a function of its settings: phantom number n is drawn when it is needed and seen once. The state so far
is kept beside FILE, so an interrupted training resumes. The pictures are blurred, moved, relit and given noise as
samples of a latent diffusion model are, so that the classifier sees the finding and not the picture's finish; they are
never mirrored.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load, save
from tqdm.auto import tqdm

from jaxcxr.files import replace_file
from jaxcxr.models.named import named_parameters, with_parameters
from jaxcxr.phantoms.classifier import WEIGHTS, About, Classifier, Table, fit_input, predict, read, seen_in, to_bytes
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.phantoms.networks import MAP, NETWORKS, SIDE
from jaxcxr.phantoms.scores import score, score_grades
from jaxcxr.phantoms.studies import Phantom, phantom
from jaxcxr.phantoms.truth import CLASSES, GRADES, NAMES, grades, name_of, present

PREVALENCE: Mapping[str, float] = {
    "left effusion": 0.16,
    "right effusion": 0.16,
    "bilateral effusion": 0.12,
    "cardiomegaly": 0.4,
    "pneumothorax": 0.35,
    "consolidation": 0.4,
    "nodule": 0.5,
    "edema": 0.35,
    "device": 0.8,
}
"""Higher than in a tree: every class is then in one of fifteen pictures at least."""
KEEP_EVERY = 100
GRADE_WEIGHT = 0.1
MASK_POSITIVE = 8.0
"""How much more a cell with a finding counts than one without."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a classifier; `network` is one of `NETWORKS`. A third of each batch is drawn at 64 pixels a side.

    The rate falls to zero once in each round, over so many `steps`. From the second round on what is too faint to be
    seen does not count; the first does without asking, which takes a drawing more.
    """

    network: str
    seed: int
    steps: tuple[int, ...]
    batch_size: int = 32
    learning_rate: float = 2e-3


TEST_SEED = 6_000_013
"""Of the patients on whom both classifiers are measured."""
SIZES = (64, 128)
CALIBRATION, HELD_OUT = 8000, 5600
"""So many phantoms set the thresholds, and so many measure them: every class has 500 of the latter at least."""
CLASSIFIERS = {
    "first": Settings("placed", seed=5_000_011, steps=(1600, 2000, 2400)),
    "second": Settings("pooled", seed=4_000_037, steps=(1000, 1200)),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures as a network takes them, uint8 (N, 128, 128), with their classes (N, 16) and grades (N, 6).

    `masks` is bool (N, 32, 32, 10): whether a cell has a pixel of the finding of each of `NAMES`. `known` is bool
    (N, 16), false for what is there and too faint to be seen.
    """

    images: np.ndarray
    present: np.ndarray
    grades: np.ndarray
    masks: np.ndarray
    known: np.ndarray

    @classmethod
    def draw(cls, seed: int, numbers: Iterable[int], sizes: Sequence[int], all_known: bool = False) -> Batch:
        """Phantoms of `seed`, drawn at `sizes` in turn; `all_known` does without asking what is too faint."""
        drawn = [phantom(seed, number, sizes[number % len(sizes)], KINDS, PREVALENCE) for number in numbers]
        return cls(
            np.concatenate([fit_input(one.image[None], len(one.image)) for one in drawn]),
            np.stack([present(one.findings) for one in drawn]),
            np.stack([grades(one.findings) for one in drawn]),
            np.stack([_cells(one) for one in drawn]),
            np.stack([_known(one) if not all_known else np.ones(len(CLASSES), bool) for one in drawn]),
        )


def _cells(one: Phantom) -> np.ndarray:
    cells = np.zeros((32, 32, len(NAMES)), bool)
    for finding, mask in zip(one.findings, one.masks, strict=True):
        side = len(mask) // 32
        cells[..., NAMES.index(name_of(finding))] |= mask.reshape(32, side, 32, side).any((1, 3))
    return cells


def _known(one: Phantom) -> np.ndarray:
    hidden = one.hidden()
    return np.array([name not in hidden for name in CLASSES])


def _draw_step(settings: Settings, step: int) -> Batch:
    first = step * settings.batch_size
    numbers = range(first, first + settings.batch_size)
    return Batch.draw(settings.seed, numbers, (64, 128, 128), all_known=step < settings.steps[0])


def _batches(settings: Settings, first: int) -> Iterator[Batch]:
    """The batches of the steps from `first` on, drawn ahead by another process."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        ahead: collections.deque = collections.deque()
        for step in range(first, sum(settings.steps)):
            while len(ahead) < 4 and (following := step + len(ahead)) < sum(settings.steps):
                ahead.append(pool.submit(_draw_step, settings, following))
            yield ahead.popleft().result()


def degrade(images: jax.Array, masks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What generation may do to a picture without changing what it shows: uint8 (B, 128, 128) to float32 in [0, 1].

    Each picture is moved by up to 4 pixels, zoomed by up to 5 %, blurred by up to 0.8 pixels (σ) and given another
    contrast, brightness and noise. One Gaussian matrix an axis does the first three. Masks (B, 32, 32, 10) move along.
    """
    keys = iter(jax.random.split(key, 8))

    def uniform(low: float, high: float) -> jax.Array:
        return jax.random.uniform(next(keys), (len(images), 1, 1), minval=low, maxval=high)

    sigma, scale, down, right = uniform(0.2, 0.8), uniform(0.95, 1.05), uniform(-4, 4), uniform(-4, 4)

    def resample(side: int, shift: jax.Array, sigma: jax.Array | float) -> jax.Array:
        at = jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2
        return jax.nn.softmax(-0.5 * ((at[:, None] * scale + shift * side / SIDE - at) / sigma) ** 2, axis=-1)

    images = images / jnp.float32(255)
    moved = resample(SIDE, down, sigma) @ images @ resample(SIDE, right, sigma).swapaxes(1, 2)
    relit = 0.5 + uniform(0.85, 1.15) * (moved - 0.5) + uniform(-0.06, 0.06)
    noise = jax.random.normal(next(keys), images.shape)
    rows, columns = (resample(masks.shape[1], shift, 0.4) for shift in (down, right))
    masks = jnp.einsum("bij,bjkc,blk->bilc", rows, masks.astype(jnp.float32), columns)
    return jnp.clip(relit + uniform(0, 0.02) * noise, 0, 1), masks


def _loss(network, parameters, images, masks, present, grades, known):
    logits, maps = with_parameters(network, parameters)(images)
    classes, graded = logits[:, : len(CLASSES)], logits[:, len(CLASSES) :].reshape(len(logits), len(GRADES), 3)
    graded_ones = grades >= 0
    of_grades = optax.softmax_cross_entropy_with_integer_labels(graded, jnp.maximum(grades, 0)) * graded_ones
    of_classes = optax.sigmoid_binary_cross_entropy(classes, present) * known
    cells = masks.reshape(len(masks), MAP, 2, MAP, 2, -1).max((2, 4))
    of_maps = MASK_POSITIVE * cells * jax.nn.softplus(-maps) + (1 - cells) * jax.nn.softplus(maps)
    return of_classes.mean() + GRADE_WEIGHT * of_grades.sum() / jnp.maximum(graded_ones.sum(), 1) + of_maps.mean()


def _rates(settings: Settings) -> optax.Schedule:
    """The rate of each step: in every round up to its highest, and down to zero."""
    rounds = [
        optax.warmup_cosine_decay_schedule(0, settings.learning_rate, min(100, steps // 4), steps)
        for steps in settings.steps
    ]
    return optax.join_schedules(rounds, list(itertools.accumulate(settings.steps))[:-1])


def fit(settings: Settings, state: Path, progress: bool = False) -> dict[str, np.ndarray]:
    """Trains, resuming from the file `state` where it is there; returns the parameters by name."""
    network = NETWORKS[settings.network](nnx.Rngs(settings.seed))
    parameters = named_parameters(network)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(_rates(settings), weight_decay=0.02))

    @jax.jit
    def update(parameters, moments, key, images, present, grades, masks, known):
        degraded = degrade(images, masks, key)
        loss, gradient = jax.value_and_grad(lambda p: _loss(network, p, *degraded, present, grades, known))(parameters)
        updates, moments = tx.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, loss

    leaves, tree = jax.tree.flatten((parameters, tx.init(parameters)))
    first = 0
    if state.exists():
        kept = load(state.read_bytes())
        first, leaves = int(kept["step"]), [kept[str(number)] for number in range(len(leaves))]
    parameters, moments = jax.tree.unflatten(tree, leaves)
    steps = sum(settings.steps)
    bar = tqdm(_batches(settings, first), initial=first, total=steps, disable=not progress, mininterval=10)
    for step, batch in enumerate(bar, first):
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        arrays = (batch.images, batch.present, batch.grades, batch.masks, batch.known)
        parameters, moments, loss = update(parameters, moments, key, *arrays)
        if (step + 1) % 20 == 0:
            bar.set_postfix(loss=f"{float(loss):.4f}")
        if (step + 1) % KEEP_EVERY == 0:
            leaves = jax.tree.leaves((parameters, moments))
            kept = {str(number): np.asarray(leaf) for number, leaf in enumerate(leaves)}
            replace_file(state, save(kept | {"step": np.array(step + 1)}))
    return {name: np.asarray(value) for name, value in parameters.items()}


def calibrate(settings: Settings, parameters: Mapping[str, np.ndarray], progress: bool) -> dict[str, tuple]:
    """By size of the pictures, the thresholds of the classes: logits with the best of the worse of both rates.

    They are the middle of those, on new patients of the training's seed, half of the pictures degraded.
    """
    found = {}
    for size in SIZES:
        batch = _draw_many(settings.seed, range(10**7, 10**7 + CALIBRATION), size, progress)
        half = CALIBRATION // 2
        images = [_degraded(batch.images[:half], settings.seed), batch.images[half:] / np.float32(255)]
        logits = predict(settings.network, parameters, np.concatenate(images))
        columns = zip(logits.T, batch.present.T, batch.known.T, strict=False)
        found[str(size)] = tuple(_threshold(column[known], there[known]) for column, there, known in columns)
    return found


def _threshold(logits: np.ndarray, there: np.ndarray) -> float:
    at = np.unique(np.concatenate([logits, [0.0]]))
    between = (at[1:] + at[:-1]) / 2
    missed = np.searchsorted(np.sort(logits[there]), between) / max(1, there.sum())
    false = 1 - np.searchsorted(np.sort(logits[~there]), between) / max(1, (~there).sum())
    worse = np.maximum(missed, false)
    best = between[worse <= worse.min() + 1e-9]
    return round(float((best.min() + best.max()) / 2), 3)


def measure(classifier: Classifier, held_out: int, progress: bool) -> dict[str, Table]:
    """What the classifier sees in `held_out` phantoms of `TEST_SEED`, as they are and degraded, by size."""
    tables = {}
    thresholds, network = classifier.about.thresholds, classifier.about.network
    for size in SIZES:
        batch = _draw_many(TEST_SEED, range(held_out), size, progress)
        for name, degraded in ((f"{size}", False), (f"{size} degraded", True)):
            images = _degraded(batch.images, TEST_SEED) if degraded else batch.images
            logits = predict(network, classifier.parameters, images)
            seen = seen_in(logits, thresholds[str(size)])
            tables[name] = Table(
                score(batch.present, seen.present, batch.known), score_grades(batch.grades, seen.grades)
            )
    return tables


def _draw_many(seed: int, numbers: range, size: int, progress: bool) -> Batch:
    chunks = [numbers[first : first + 100] for first in range(0, len(numbers), 100)]
    bar = tqdm(chunks, f"draw phantoms of {size}", unit="00", disable=not progress, mininterval=10)
    batches = [dataclasses.astuple(Batch.draw(seed, chunk, (size,))) for chunk in bar]
    return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def _degraded(images: np.ndarray, seed: int) -> np.ndarray:
    """`degrade` in parts, float32 (N, 128, 128)."""
    key = jax.random.key(seed)
    nothing = jnp.zeros((64, 32, 32, 1))
    parts = [jnp.asarray(images[first : first + 64]) for first in range(0, len(images), 64)]
    keys = (jax.random.fold_in(key, number) for number in range(len(parts)))
    degraded = (degrade(one, nothing[: len(one)], of)[0] for one, of in zip(parts, keys, strict=True))
    return np.concatenate([np.asarray(one) for one in degraded])


def train(name: str, out: Path, progress: bool = False, keep_weights: bool = False) -> Classifier:
    """Trains, calibrates and measures one of `CLASSIFIERS` and writes it to `out`.

    With `keep_weights` the classifier that comes with the package is calibrated and measured again: for phantoms that
    are drawn a little differently than those that it has learnt from.
    """
    settings = CLASSIFIERS[name]
    parameters = read(name).parameters if keep_weights else fit(settings, out.with_suffix(".state"), progress)
    # Measured as it is kept, in float16.
    parameters = {of: value.astype(np.float16) for of, value in parameters.items()}
    thresholds = calibrate(settings, parameters, progress)
    about = About(settings.network, CLASSES, thresholds, {}, dataclasses.asdict(settings))
    classifier = Classifier(name, about, parameters)
    about = dataclasses.replace(about, tables=measure(classifier, HELD_OUT, progress))
    classifier = dataclasses.replace(classifier, about=about)
    replace_file(out, to_bytes(classifier))
    return classifier


def main() -> None:
    """Trains one classifier and prints what it sees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CLASSIFIERS)
    parser.add_argument("--out", type=Path, help="file to write; default: where the package keeps it")
    parser.add_argument("--keep-weights", action="store_true", help="calibrate and measure what the package has")
    args = parser.parse_args()
    out = args.out or WEIGHTS / f"{args.name}.safetensors"
    classifier = train(args.name, out, progress=True, keep_weights=args.keep_weights)
    for measured, table in classifier.about.tables.items():
        for of, one in table.classes.items():
            rates = (one.sensitivity, one.specificity)
            said = "  ".join(f"{100 * r.share:6.2f} % of {r.total}" for r in rates)
            print(f"{measured:13}  {of:20}  sensitivity, specificity  {said}")


if __name__ == "__main__":
    main()
