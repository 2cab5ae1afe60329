"""Metrics of generated images during training: what the average draws against validation images, as `evaluate` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr.data.images import decode_png, gray
from jaxcxr.data.loader import as_text, open_split
from jaxcxr.data.records import EmptySplit
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors, settings
from jaxcxr.evaluation.features import Network
from jaxcxr.evaluation.metrics import METRICS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.sheets import make_pictures, noise_of

_AT_ONCE = 16  # pictures, of all devices together


class Generated:
    """Draws the prompts of validation images, under the same noise each time, and compares with those images.

    The numbers are of whole sets at one n, so moments of a run can be compared. They have no floor: `jaxcxr evaluate`
    gives it.
    """

    def __init__(self, pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh):
        """Reads images and prompts, and computes the real features.

        Raises:
          UserError: there are no validation images, fewer than a metric needs, or no weights of an extractor.
        """
        chosen = settings.read(config.evaluation)
        images, self._texts = _validation(config, chosen.images, chosen.generated)
        self._metrics = [name for name in chosen.metrics if name in METRICS]
        if not (self._metrics and chosen.extractors):
            raise UserError(
                "config.evaluation.every: needs an extractor, and a metric of sets of features; these are"
                f" {', '.join(METRICS)}"
            )
        for name in self._metrics:
            if METRICS[name].least > min(len(images), len(self._texts)):
                raise UserError(
                    f"config.evaluation.metrics: {name} needs {METRICS[name].least} images of each set; there are"
                    f" {len(images)} for validation and config.evaluation.generated={len(self._texts)}"
                )
        self._pictures = make_pictures(pipeline, config, mesh)
        self._noise = noise_of(pipeline, config.seed, range(len(self._texts)))
        self._size = -(-min(_AT_ONCE, len(self._texts)) // mesh.size) * mesh.size
        self._real: dict[str, tuple[extractors.Chosen, Network, np.ndarray]] = {}
        for one in extractors.choose_all(chosen.extractors, chosen.weights):
            network = Network(one, _AT_ONCE, mesh)
            self._real[one.name] = (one, network, network.features(map(one.prepared, images)))

    def __call__(self, parameters: Mapping[str, jax.Array]) -> dict[str, float]:
        """The metrics of what these parameters draw, as `fd/inception/clean-fid`."""
        pictures = self._draw(parameters)
        found: dict[str, float] = {}
        for name, (one, network, real) in self._real.items():
            drawn = network.features(map(one.prepared, pictures))
            for metric in self._metrics:
                values = METRICS[metric].compute(real, drawn, 0)
                found |= {f"{key}/{name}": float(value) for key, value in values.items()}
        return _of_first(found)

    def _draw(self, parameters: Mapping[str, jax.Array]) -> np.ndarray:
        """uint8 (N, H, W); a short batch is filled up, so that one program serves all."""
        count, done = len(self._texts), []
        hidden = jax.process_index() > 0
        for start in tqdm(range(0, count, self._size), desc="evaluate", leave=False, disable=hidden or None):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)
            drawn = self._pictures(parameters, [self._texts[row] for row in rows], self._noise[rows])
            done += [gray(picture) for picture in drawn[: count - start]]
        return np.stack(done)


def _validation(config: ConfigDict, most: int, generated: int) -> tuple[list[np.ndarray], list[str]]:
    """Validation images, uint8 (S, S) each, and the prompts to draw: those of the same records, from the first on."""
    path = Path(config.data.path)
    if Summary.read(path) is None:
        raise UserError(f"config.evaluation.every: {path} is not prepared; run jaxcxr prepare, or set it to 0")
    try:
        records: Sequence[Any] = open_split(path, "validate", config.data.size, config.data.channels)
    except EmptySplit as error:
        raise UserError(f"config.evaluation.every: {path} has no images in split 'validate'; set it to 0") from error
    order = np.random.default_rng(config.seed).permutation(len(records)).tolist()
    images = [gray(decode_png(records[place]["image"])) for place in order[: most or None]]
    texts = [as_text(records[place]["prompts"][0]) for place in order[:generated]]
    return images, [texts[number % len(texts)] for number in range(generated)]


def _of_first(found: dict[str, float]) -> dict[str, float]:
    """The first process's numbers on all: they decide when a run stops, and linear algebra may differ in a last bit."""
    if jax.process_count() == 1:
        return found
    from jax.experimental import multihost_utils

    values = multihost_utils.broadcast_one_to_all(np.array(list(found.values()), np.float64))
    return dict(zip(found, np.asarray(values).tolist(), strict=True))
