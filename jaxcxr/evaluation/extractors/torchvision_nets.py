"""torchvision's DenseNet-121, ResNet-18 and ResNet-50, which were trained on ImageNet.

The preprocessing is that of the weights that torchvision calls `IMAGENET1K_V1`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, read_weights
from jaxcxr.evaluation.extractors.resizing import centre_crop, pil_bilinear, rgb, short_edge
from jaxcxr.models.features import IMAGENET_MEAN, IMAGENET_STD
from jaxcxr.models.features.densenet import WIDTH, DenseNet
from jaxcxr.models.features.resnet import resnet18, resnet50

SHORT_EDGE, SIZE = 256, 224
"""Pixels of the short edge before the crop, and of a side of it."""
# DenseNet's file is older than the rule that a module's name has no dot.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


def imagenet(image: Image.Image) -> np.ndarray:
    """The middle of a picture in RGB, normalized by ImageNet's statistics, (224, 224, 3)."""
    size = short_edge((image.height, image.width), SHORT_EDGE)
    return (centre_crop(pil_bilinear(rgb(image), size), (SIZE, SIZE)) / 255 - IMAGENET_MEAN) / IMAGENET_STD


def _densenet121(rngs: nnx.Rngs) -> DenseNet:
    return DenseNet(rngs=rngs)


def _resnet18(rngs: nnx.Rngs) -> nnx.Module:
    return resnet18(rngs=rngs)


def _resnet50(rngs: nnx.Rngs) -> nnx.Module:
    return resnet50(rngs=rngs)


def _extractor(width: int, network: Callable[[nnx.Rngs], nnx.Module], source: str) -> Extractor:
    def rename(name: str) -> str | None:
        return None if name.startswith(("classifier.", "fc.")) else _OLD_NAME.sub(r"\1", name)

    def read(file: Path) -> Weights:
        return read_weights(file, network, rename)

    return Extractor(width, network, {"imagenet": imagenet}, source, read)


DENSENET_121 = _extractor(WIDTH, _densenet121, "download torchvision's densenet121-a639ec97.pth")
RESNET_18 = _extractor(512, _resnet18, "download torchvision's resnet18-f37072fd.pth")
RESNET_50 = _extractor(2048, _resnet50, "download torchvision's resnet50-0676ba61.pth")
