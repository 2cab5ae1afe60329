"""Classifiers that were trained with this package, as functions of images."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.interop.config_files import CLASSIFIER
from jaxcxr.interop.pipeline import StableDiffusion, from_files


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """Probabilities of classes, on all devices, a batch at a time.

    Attributes:
      names: of the classes, in the order of the answers.
      pipeline: the classifier alone, its parameters as shapes.
      weights: by full name, float32.
      batch_size: images at once, of all devices together.
      mesh: the devices; all there are if None.
    """

    names: tuple[str, ...]
    pipeline: StableDiffusion
    weights: Mapping[str, np.ndarray]
    batch_size: int
    mesh: Mesh | None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Gray images uint8 (N, S, S), of any side, to the probability of each class, float32 (N, K).

        Every process has the images whole, and gets every answer.

        Raises:
          UserError: the images are of another shape or dtype.
        """
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise UserError(f"images: are {images.dtype} of shape {images.shape}; a classifier takes uint8 (N, S, S)")
        found = [np.zeros((0, len(self.names)), np.float32)]
        found += self._compiled(images)
        return np.concatenate(found)

    @functools.cached_property
    def _compiled(self) -> InBatches:
        return InBatches(self._probabilities, self.weights, self.batch_size, self.mesh)

    def _probabilities(self, weights: Mapping[str, Any], images: jax.Array) -> jax.Array:
        network = self.pipeline.with_parameters(weights).classifier
        return jax.nn.sigmoid(network.classify(images[..., None]))


def load_classifier(
    path: str | Path, *, ema: bool = True, batch_size: int = 32, mesh: Mesh | None = None
) -> TrainedClassifier:
    """Reads a classifier from the workdir of its training, or from what was converted of that.

    Args:
      path: the folder.
      ema: take the averaged weights where there are any.
      batch_size: images at once, of all devices together.
      mesh: the devices; all there are if None.

    Raises:
      UserError: there is no classifier, or it cannot be read.
    """
    checkpoint = interop.read(path, only=(CLASSIFIER,), ema=ema)
    if CLASSIFIER not in checkpoint.networks:
        raise UserError(f"{path}: holds no classifier; give the workdir of jaxcxr train --config configs/classifier.py")
    pipeline = from_files(checkpoint.files, only=(CLASSIFIER,))
    weights = {name: np.asarray(tensor.read(), np.float32) for name, tensor in checkpoint.tensors.items()}
    return TrainedClassifier(pipeline.classifier.config.classes, pipeline, weights, batch_size, mesh)
