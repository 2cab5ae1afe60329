"""A classifier that was trained with this package, as an extractor: what it sees before its last layer."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.evaluation.classifiers import load_classifier
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights
from jaxcxr.interop.config_files import CLASSIFIER
from jaxcxr.models.classifier import Classifier, architecture_class, prepared
from jaxcxr.models.config import ClassifierConfig

PREPROCESSING = "trained"


def open_trained(folder: Path) -> tuple[Extractor, Weights]:
    """The extractor that the workdir of a classifier's training makes, and its averaged weights.

    Raises:
      UserError: it holds no classifier, or cannot be read.
    """
    found = load_classifier(folder)
    config = found.pipeline.classifier.config
    network = functools.partial(_network, config)
    side, channels = config.image_size, config.in_channels
    inputs = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    width = nnx.eval_shape(lambda images: network(nnx.Rngs(0))(images), inputs).shape[-1]  # type: ignore[operator]
    weights = {name.removeprefix(f"{CLASSIFIER}."): value for name, value in found.weights.items()}
    prepare = {PREPROCESSING: functools.partial(_prepared, config)}
    return Extractor(width, network, prepare, f"train {folder}", lambda file: weights), weights


def _network(config: ClassifierConfig, rngs: nnx.Rngs) -> Classifier:
    return architecture_class(config.architecture)(config, rngs=rngs)  # type: ignore[call-arg]


def _prepared(config: ClassifierConfig, image: Image.Image) -> np.ndarray:
    return np.asarray(prepared(jnp.asarray(np.asarray(image.convert("L")))[None, ..., None], config))[0]
