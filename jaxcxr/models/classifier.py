"""Classifiers of radiographs: the feature networks with a head, and what they take an image as.

Their parameters have the names of torchvision's networks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models.config import ClassifierConfig
from jaxcxr.models.features import IMAGENET_MEAN, IMAGENET_STD
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.features.densenet import DenseNet
from jaxcxr.models.features.resnet import BasicBlock, Bottleneck, ResNet
from jaxcxr.models.features.small import MULTIPLE, SmallNet
from jaxcxr.models.layers import GroupNorm

Described = ClassifierConfig | Mapping[str, Any]


class Classifier(nnx.Module):
    """What the classifiers below share; each is a feature network besides.

    Attributes:
      config: as of `config.json`.
    """

    config: ClassifierConfig

    def classify(self, images: jax.Array) -> jax.Array:
        """Images `(B, H, W, 1 or 3)`, 0 to 255, to the classes' logits `(B, K)` float32."""
        network: Any = self
        return network.logits(network(prepared(images, self.config))).astype(jnp.float32)

    def _described(self, config: ClassifierConfig, dtype: DTypeLike) -> None:
        """Takes the config; convolutions and group norms are computed in `dtype`."""
        self.config = config
        for _, module in nnx.iter_modules(self):
            if isinstance(module, nnx.Conv | GroupNorm):
                module.dtype = dtype


class ResNet18Classifier(Classifier, ResNet):
    """ResNet-18."""

    def __init__(self, config: Described, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        config = ClassifierConfig.from_dict(config)
        ResNet.__init__(self, BasicBlock, (2, 2, 2, 2), config.in_channels, len(config.classes), rngs=rngs)
        self._described(config, dtype)


class ResNet50Classifier(Classifier, ResNet):
    """ResNet-50."""

    def __init__(self, config: Described, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        config = ClassifierConfig.from_dict(config)
        ResNet.__init__(self, Bottleneck, (3, 4, 6, 3), config.in_channels, len(config.classes), rngs=rngs)
        self._described(config, dtype)


class DenseNet121Classifier(Classifier, DenseNet):
    """DenseNet-121."""

    def __init__(self, config: Described, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        config = ClassifierConfig.from_dict(config)
        DenseNet.__init__(self, config.in_channels, len(config.classes), rngs=rngs)
        self._described(config, dtype)


class SmallClassifier(Classifier, SmallNet):
    """The small network of this package."""

    def __init__(self, config: Described, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        config = ClassifierConfig.from_dict(config)
        if config.image_size % MULTIPLE:
            raise UserError(f"classifier: image_size={config.image_size}: is a multiple of {MULTIPLE} for small")
        SmallNet.__init__(self, config.in_channels, len(config.classes), rngs=rngs)
        self._described(config, dtype)


ARCHITECTURES: dict[str, type[Classifier]] = {
    "densenet121": DenseNet121Classifier,
    "resnet18": ResNet18Classifier,
    "resnet50": ResNet50Classifier,
    "small": SmallClassifier,
}


def architecture_class(name: Any) -> type[Classifier]:
    """The class of an architecture.

    Raises:
      UserError: there is none of this name.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(f"classifier: architecture {name!r:.100} is not supported (only {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[name]


def prepared(images: jax.Array, config: ClassifierConfig) -> jax.Array:
    """Images `(B, H, W, 1 or 3)`, 0 to 255, as a network takes them: `(B, image_size, image_size, in_channels)`.

    Larger ones are reduced by a linear filter that keeps high frequencies out.

    Raises:
      UserError: they are in colour, and the network takes gray ones.
    """
    side, pixels = config.image_size, jnp.asarray(images, jnp.float32)
    channels = pixels.shape[-1]
    if channels not in (1, config.in_channels):
        raise UserError(f"images: are of {channels} channels, this classifier takes {config.in_channels}")
    if pixels.shape[1:3] != (side, side):
        pixels = jax.image.resize(pixels, (len(pixels), side, side, channels), "linear", antialias=True)
    if config.in_channels == 3:
        return (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return pixels / 127.5 - 1


def batch_norms(network: nnx.Module) -> dict[str, BatchNorm]:
    """The batch norms of a network, by their names in it."""
    return {
        ".".join(map(str, path)): module for path, module in nnx.iter_modules(network) if isinstance(module, BatchNorm)
    }


def learning_norms(network: nnx.Module, learns: Collection[str]) -> list[str]:
    """The names of the batch norms whose statistics learn: those of which `learns` has both parameters' names.

    Raises:
      UserError: it has one of the two.
    """
    found = []
    for name in batch_norms(network):
        both = [f"{name}.{leaf}" in learns for leaf in ("mean", "var")]
        if any(both) and not all(both):
            raise UserError(f"config.trainable: selects one of {name}.mean and {name}.var; they learn together")
        found += [name] if all(both) else []
    return found
