"""Whether phantoms show what was asked for: a small classifier of pleural effusion, and what it counts.

It answers two questions, fluid on the patient's right and on the left, from a gray image of 64 by 64 pixels. It
learns from phantoms drawn for the purpose, of patients that no other tree holds, blurred, shifted and relit as
samples of a latent diffusion model are, so that it judges the finding and not the picture's finish.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from flax import nnx
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm.auto import tqdm

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.evaluation.pictures import Picture, read_generated
from jaxcxr.files import replace_file
from jaxcxr.models.layers import conv, linear
from jaxcxr.models.named import named_parameters, with_parameters
from jaxcxr.phantoms.generator import KINDS, Patient, draw
from jaxcxr.phantoms.prompts import EFFUSIONS
from jaxcxr.phantoms.studies import PREVALENCE, sample_findings

SIDE = 64
"""Pixels of a side of the classifier's images; others are resized to it."""
_REVISION = 1  # raised when the same settings would give another classifier
_MARK = "jaxcxr effusion classifier"
_SIDES = ("right", "left")
_WIDTHS = (16, 32)
_LABEL = {(False, False): "none", (False, True): "left", (True, False): "right", (True, True): "both"}
_EQUAL_SIDES = {**PREVALENCE, "left effusion": 0.25, "right effusion": 0.25, "bilateral effusion": 0.25}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a classifier.

    `size` is the side that phantoms are drawn at, `seed` that of the patients and of the training; the first
    `patients` of them are learnt from and the next `held_out` tested on, an image each.
    """

    seed: int
    size: Annotated[int, msgspec.Meta(ge=1, le=8192)] = SIDE
    patients: int = 2500
    held_out: int = 800
    steps: int = 800
    batch_size: int = 64
    learning_rate: float = 2e-3
    revision: int = _REVISION


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier: its settings, its weights by name and its answers on held-out phantoms."""

    settings: Settings
    parameters: Mapping[str, np.ndarray]
    held_out: "Table"
    held_out_degraded: "Table"
    """The same phantoms blurred, shifted and relit as in training."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Four = tuple[_Count, _Count, _Count, _Count]


@dataclasses.dataclass(frozen=True)
class _About:
    """What a classifier's file says beside the weights; counts as in `Table`."""

    settings: Settings
    held_out: tuple[_Four, _Four, _Four, _Four]
    held_out_degraded: tuple[_Four, _Four, _Four, _Four]


@dataclasses.dataclass(frozen=True)
class Table:
    """Counts of what was asked for (rows) against what is shown (columns), int (4, 4) in the order of `EFFUSIONS`."""

    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, asked: Sequence[str], shown: Sequence[str]) -> "Table":
        """Counts pairs of labels.

        Raises:
          ValueError: the lengths differ, or a label is none of `EFFUSIONS`.
        """
        counts = np.zeros((len(EFFUSIONS),) * 2, int)
        for row, column in zip(asked, shown, strict=True):
            counts[EFFUSIONS.index(row), EFFUSIONS.index(column)] += 1
        return cls(tuple(tuple(row) for row in counts.tolist()))

    @property
    def total(self) -> int:
        """How many images were judged."""
        return sum(map(sum, self.counts))

    @property
    def correct(self) -> int:
        """How many show what was asked for."""
        return sum(self.counts[i][i] for i in range(len(EFFUSIONS)))

    @property
    def accuracy(self) -> float:
        """The share of images that show what was asked for; NaN of none."""
        return self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson(self.correct, self.total)

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "correct": self.correct,
            "total": self.total,
            "labels": list(EFFUSIONS),
            "confusion": [list(row) for row in self.counts],
        }


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, J. Am. Stat. Assoc. 22:209, 1927); (0, 1) of no trials."""
    if not total:
        return 0.0, 1.0
    share, square = correct / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


class Network(nnx.Module):
    """Two convolutions and two dense layers that still know where things are: sides must not be pooled away.

    Resolution is folded into channels: strided convolutions and pooling have slow gradients on a CPU.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = conv(16, _WIDTHS[0], dtype=jnp.float32, rngs=rngs)
        self.conv2 = conv(4 * _WIDTHS[0], _WIDTHS[1], dtype=jnp.float32, rngs=rngs)
        self.dense = linear(_WIDTHS[1] * (SIDE // 8) ** 2, 64, dtype=jnp.float32, rngs=rngs)
        self.out = linear(64, len(_SIDES), dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 (B, 64, 64) in [0, 1] to logits of fluid on the patient's right and left, (B, 2)."""
        hidden = nnx.relu(self.conv1(_fold(4 * (images[..., None] - 0.5), 4)))
        hidden = nnx.relu(self.conv2(_fold(hidden, 2)))
        return self.out(nnx.relu(self.dense(hidden.reshape(len(hidden), -1))))


def _fold(hidden: jax.Array, by: int) -> jax.Array:
    """Blocks of pixels to channels: (B, H, W, C) to (B, H / by, W / by, by² C)."""
    batch, height, width, channels = hidden.shape
    blocks = hidden.reshape(batch, height // by, by, width // by, by, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // by, width // by, -1)


def train_classifier(settings: Settings, progress: bool = False) -> Classifier:
    """Draws phantoms, trains on them and tests on patients that were not trained on; a function of the settings."""
    pictures = list(_draw_phantoms(settings, progress))
    learnt, held_out = pictures[: settings.patients], pictures[settings.patients :]
    parameters = _fit(settings, *_arrays(learnt), progress)
    truth = [picture.effusion for picture in held_out]
    pixels, _ = _arrays(held_out)
    degraded = 255 * _degrade(pixels, np.random.default_rng(settings.seed + 1))
    return Classifier(
        settings,
        parameters,
        held_out=Table.of(truth, _labels(parameters, pixels)),
        held_out_degraded=Table.of(truth, _labels(parameters, degraded.astype(np.uint8))),
    )


def classify(classifier: Classifier, images: np.ndarray) -> list[str]:
    """Says of uint8 (N, H, W) images where each shows an effusion: N labels out of `EFFUSIONS`."""
    return _labels(classifier.parameters, np.stack([_shrink(image) for image in images]))


def asked_and_shown(generated: Path, classifier: Classifier) -> Table:
    """The table of a folder that `jaxcxr sample` wrote from prompts with an `effusion` field.

    Raises:
      UserError: the folder is not such a one, or an image of it says nothing of effusion.
    """
    pictures = read_generated(generated, classifier.settings.size)
    require_asked(pictures, generated)
    return judge(pictures, classifier)


def judge(pictures: Sequence[Picture], classifier: Classifier) -> Table:
    """The table of pictures whose `effusion` is known."""
    shown = classify(classifier, np.stack([picture.pixels for picture in pictures]))
    return Table.of([picture.effusion for picture in pictures], shown)


def require_asked(pictures: Sequence[Picture], folder: Path) -> None:
    """Raises UserError where a generated picture does not say which effusion was asked for."""
    silent = sum(not picture.effusion for picture in pictures)
    if silent:
        raise UserError(
            f"{folder}: {silent} of {len(pictures)} images have no `effusion` field in the manifest; "
            "sample from prompts that `jaxcxr prompts` wrote"
        )


def cached_classifier(file: Path, settings: Settings, progress: bool = False) -> Classifier:
    """Reads the classifier of these settings from `file`, or trains it and writes it there.

    A classifier of other settings is replaced.

    Raises:
      UserError: `file` is something else than a classifier, or cannot be written.
    """
    if file.exists() and (found := read_classifier(file)).settings == settings:
        return found
    classifier = train_classifier(settings, progress)
    about = {
        "settings": dataclasses.asdict(settings),
        "held_out": classifier.held_out.counts,
        "held_out_degraded": classifier.held_out_degraded.counts,
    }
    try:
        replace_file(file, save(dict(classifier.parameters), {_MARK: json.dumps(about)}))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from error
    return classifier


def read_classifier(file: Path) -> Classifier:
    """Reads a classifier.

    Raises:
      UserError: `file` is not one.
    """
    remedy = "name another file or remove this one"
    network = nnx.eval_shape(lambda: Network(nnx.Rngs(0)))
    shapes = {name: tuple(value.shape) for name, value in named_parameters(network).items()}
    try:
        with safe_open(file, "numpy") as tensors:
            about = (tensors.metadata() or {})[_MARK]
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            parameters = {name: tensors.get_tensor(name) for name in found} if found == shapes else {}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: is not an effusion classifier; {remedy}") from error
    if not parameters or not all(x.dtype == np.float32 and np.isfinite(x).all() for x in parameters.values()):
        raise UserError(f"{file}: holds other tensors than an effusion classifier has; {remedy}")
    described: _About = parsing.parse_json(about, _About, f"{file}: {_MARK}", remedy=remedy)
    return Classifier(described.settings, parameters, Table(described.held_out), Table(described.held_out_degraded))


def _draw_phantoms(settings: Settings, progress: bool) -> Iterator[Picture]:
    """One image of each patient, at `SIDE`; the four effusions are equally frequent, other findings as in a tree."""
    count = settings.patients + settings.held_out
    for number in tqdm(range(count), "draw phantoms", unit="img", disable=not progress):
        rng = np.random.default_rng([settings.seed, number, 1])
        findings = sample_findings(rng, KINDS, _EQUAL_SIDES)
        view = "AP" if rng.random() < 0.3 else "PA"
        sides = [finding.side for finding in findings if finding.kind == "effusion"]
        pixels = draw(Patient(settings.seed, number), 0, findings, settings.size, view).image
        yield Picture(_shrink(pixels), "", {"": "none", "bilateral": "both"}.get("".join(sides), "".join(sides)))


def _shrink(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W) to uint8 (`SIDE`, `SIDE`), with the filter of `data.images`."""
    if image.shape == (SIDE, SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _arrays(pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, H, W) and targets float32 (N, 2): fluid on the patient's right, on the left."""
    targets = [[picture.effusion in (side, "both") for side in _SIDES] for picture in pictures]
    return np.stack([picture.pixels for picture in pictures]), np.array(targets, np.float32)


def _fit(settings: Settings, pixels: np.ndarray, targets: np.ndarray, progress: bool) -> dict[str, np.ndarray]:
    """Trains on pixels uint8 (N, 64, 64) and targets (N, 2); returns the parameters by name."""
    network = Network(nnx.Rngs(settings.seed))
    parameters = named_parameters(network)
    tx = optax.adamw(optax.cosine_decay_schedule(settings.learning_rate, settings.steps), weight_decay=0.01)

    def loss(parameters, images, targets):
        return optax.sigmoid_binary_cross_entropy(with_parameters(network, parameters)(images), targets).mean()

    @jax.jit
    def update(parameters, moments, images, targets):
        updates, moments = tx.update(jax.grad(loss)(parameters, images, targets), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    moments, rng = tx.init(parameters), np.random.default_rng(settings.seed)
    for _ in tqdm(range(settings.steps), "train classifier", unit="step", disable=not progress):
        rows = rng.integers(len(pixels), size=settings.batch_size)
        parameters, moments = update(parameters, moments, _degrade(pixels[rows], rng), targets[rows])
    return {name: np.asarray(value) for name, value in parameters.items()}


def _degrade(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What generation may do to an image without changing what it shows: uint8 (B, 64, 64) to the same in float32.

    Each image is moved by up to 3 pixels, zoomed by up to 5 %, blurred by up to 1.6 pixels (σ) and given another
    contrast, brightness and noise. One Gaussian matrix an axis does the first three. Never mirrored: a side is
    what is asked for.
    """

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (len(images), 1, 1)).astype(np.float32)

    at = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    sigma, scale = uniform(0.3, 1.6), uniform(0.95, 1.05)

    def resample() -> np.ndarray:
        square = ((at[:, None] * scale + uniform(-3, 3) - at) / sigma) ** 2
        # Less the smallest: what lies outside is like the edge, as in a softmax.
        weights = np.exp(-0.5 * (square - square.min(axis=-1, keepdims=True)))
        return weights / weights.sum(axis=-1, keepdims=True)

    moved = resample() @ (images / np.float32(255)) @ resample().swapaxes(1, 2)
    relit = 0.5 + uniform(0.8, 1.2) * (moved - 0.5) + uniform(-0.08, 0.08)
    grainy = relit + uniform(0, 0.05) * rng.standard_normal(images.shape, np.float32)
    return np.clip(grainy, 0, 1)


def _labels(parameters: Mapping[str, np.ndarray], pixels: np.ndarray) -> list[str]:
    """uint8 (N, 64, 64) to N labels."""
    network = with_parameters(Network(nnx.Rngs(0)), {name: jnp.asarray(value) for name, value in parameters.items()})
    forward = jax.jit(lambda images: network(images.astype(jnp.float32) / 255))
    batches = (pixels[first : first + 256] for first in range(0, len(pixels), 256))
    logits = np.concatenate([np.asarray(forward(batch)) for batch in batches])
    return [_LABEL[bool(right), bool(left)] for right, left in logits > 0]
