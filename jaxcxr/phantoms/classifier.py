"""The classifier that comes with the package: which findings a picture shows, on which side, and how large.

`python -m jaxcxr.phantoms.training first` makes it again. `second` is made the same way and given as a file: it has
another network, seed and patients, for uses in which the first has selected the pictures.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import nnx
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxcxr.errors import UserError
from jaxcxr.models.named import named_parameters, with_parameters
from jaxcxr.parsing import parse_json
from jaxcxr.phantoms.networks import NETWORKS, SIDE
from jaxcxr.phantoms.scores import Rate, Score
from jaxcxr.phantoms.truth import CLASSES, GRADES

WEIGHTS = Path(__file__).with_name("weights")
NAMES = ("first", "second")
_MARK = "jaxcxr phantom classifier"
_BATCH = 64


@dataclass(frozen=True)
class Table:
    """What a classifier was measured to see on phantoms of patients that it was not trained on."""

    classes: dict[str, Score]
    grades: dict[str, Rate]

    def __post_init__(self) -> None:
        """Raises ValueError where it is of other classes."""
        if set(self.classes) != set(CLASSES) or set(self.grades) != set(GRADES):
            raise ValueError("a table of other classes")

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "classes": {name: one.as_dict() for name, one in self.classes.items()},
            "grades": {kind: rate.as_dict() for kind, rate in self.grades.items()},
        }


_Thresholds = Annotated[tuple[float, ...], msgspec.Meta(min_length=len(CLASSES), max_length=len(CLASSES))]


@dataclass(frozen=True)
class About:
    """What a classifier's file says of it.

    `thresholds` are the logits above which a class counts as seen, (16,) by the side of the pictures. `tables` are by
    what was measured: "128", "64" and, as in training blurred, moved and relit, "128 degraded" and "64 degraded".
    `training` has the settings that it was trained with.
    """

    network: str
    classes: tuple[str, ...]
    thresholds: Annotated[dict[str, _Thresholds], msgspec.Meta(min_length=1)]
    tables: dict[str, Table]
    training: dict[str, float | int | str | tuple[int, ...]]


@dataclass(frozen=True)
class Classifier:
    """A classifier: its name, what is known of it, and its parameters by name."""

    name: str
    about: About
    parameters: Mapping[str, np.ndarray]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the pictures that it reads, in pixels."""
        return tuple(sorted(map(int, self.about.thresholds)))

    def reads_at(self, side: int) -> int:
        """The size, one of `sizes`, at which it reads pictures of `side` pixels; larger pictures are reduced to it.

        Raises:
          UserError: they are smaller than the smallest of `sizes`.
        """
        fitting = [size for size in self.sizes if size <= side]
        if not fitting:
            sizes = " or ".join(map(str, self.sizes))
            raise UserError(
                f"classifier {self.name}: reads pictures of {sizes} pixels a side, these have {side}; "
                f"make them {self.sizes[0]} or larger, or name another --classifier"
            )
        return fitting[-1]


@dataclass(frozen=True)
class Seen:
    """What a classifier sees in N pictures.

    `present` is bool (N, 16), in the order of `CLASSES`. `grades` is int (N, 6), in the order of `GRADES`: the index of
    the size or zone, which says nothing where the kind is not there.
    """

    present: np.ndarray
    grades: np.ndarray


def read(name_or_file: str | Path) -> Classifier:
    """Reads a classifier that comes with the package, by its name, or a file.

    Raises:
      UserError: there is no such file, or it is not a classifier.
    """
    file = WEIGHTS / f"{name_or_file}.safetensors" if name_or_file in NAMES else Path(name_or_file)
    remedy = f"give {' or '.join(NAMES)}, or a file that `python -m jaxcxr.phantoms.training` wrote"
    if not file.is_file():
        raise UserError(f"{file}: no such classifier; {remedy}")
    try:
        with safe_open(file, "numpy") as tensors:
            said = (tensors.metadata() or {})[_MARK]
            about: About = parse_json(said, About, str(file), remedy=remedy)
            measured = {"64", "128"} & set(about.tables) >= set(about.thresholds)
            if about.network not in NETWORKS or about.classes != CLASSES or not measured:
                raise UserError(f"{file}: is a classifier of another version; {remedy}")
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            parameters = {name: tensors.get_tensor(name) for name in found} if found == _shapes(about.network) else {}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: is not a classifier of phantoms; {remedy}") from error
    if not parameters or not all(x.dtype == np.float16 and np.isfinite(x).all() for x in parameters.values()):
        raise UserError(f"{file}: holds other tensors than a classifier of phantoms has; {remedy}")
    return Classifier(str(name_or_file), about, parameters)


def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    module = nnx.eval_shape(lambda: NETWORKS[network](nnx.Rngs(0)))
    return {name: tuple(value.shape) for name, value in named_parameters(module).items()}


def to_bytes(classifier: Classifier) -> bytes:
    """The classifier's file: its weights in float16."""
    parameters = {name: np.asarray(value, np.float16) for name, value in classifier.parameters.items()}
    return save(parameters, {_MARK: json.dumps(asdict(classifier.about))})


def see(classifier: Classifier, images: np.ndarray) -> Seen:
    """What the classifier sees in pictures, uint8 (N, H, H).

    Raises:
      UserError: they are too small for it.
    """
    size = classifier.reads_at(images.shape[1])
    logits = predict(classifier.about.network, classifier.parameters, fit_input(images, size))
    return seen_in(logits, classifier.about.thresholds[str(size)])


def seen_in(logits: np.ndarray, thresholds: Sequence[float]) -> Seen:
    """What logits (N, ANSWERS) say, given the thresholds (16,) of the classes."""
    graded = logits[:, len(CLASSES) :].reshape(len(logits), len(GRADES), 3)
    return Seen(logits[:, : len(CLASSES)] > np.array(thresholds), graded.argmax(-1))


def fit_input(images: np.ndarray, size: int) -> np.ndarray:
    """Pictures uint8 (N, H, H) as a network takes them that reads at `size`, 64 or 128: uint8 (N, 128, 128).

    Larger ones are reduced to `size`, with the filter of `data.images`; of 64 pixels each is taken four times.
    """
    if images.shape[1:] != (size, size):
        how = Image.Resampling.LANCZOS
        images = np.stack([np.asarray(Image.fromarray(image).resize((size, size), how)) for image in images])
    times = SIDE // size
    return images.repeat(times, axis=1).repeat(times, axis=2)


def predict(network: str, parameters: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits float32 (N, ANSWERS) of pictures (N, 128, 128), uint8 or float32 in [0, 1]."""
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in parameters.items()}
    logits = []
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        batch = batch / np.float32(255) if batch.dtype == np.uint8 else batch
        # Every batch has one shape, so that one program is compiled.
        padded = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0), (0, 0)))
        logits.append(np.asarray(_forward(network)(weights, padded))[: len(batch)])
    return np.concatenate(logits)


@functools.cache
def _forward(network: str) -> Any:
    module = NETWORKS[network](nnx.Rngs(0))
    return jax.jit(lambda parameters, images: with_parameters(module, parameters)(images)[0])
