"""torchxrayvision's `densenet121-res224-all`: a DenseNet-121 that was trained on chest X-rays (arXiv 2111.00595).

Its features are those of FID-XRV (RoentGen, arXiv 2211.12737), its outputs scores of 18 findings. The preprocessings:

| name | a picture is |
|---|---|
| `xrv` | resized from a square to 224 pixels, with antialiasing, as torchxrayvision does since January 2025 |
| `xrv-no-antialias` | the same without, as before |
| `roentgen` | squashed to 299 pixels as clean-fid does, then resized as RoentGen does with torchvision 0.17 or later |
| `roentgen-no-antialias` | the same with an earlier torchvision, which shrank without antialiasing |
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, read_weights
from jaxcxr.evaluation.extractors.resizing import gray, pil_float_bicubic, pixels, rgb, torch_bilinear
from jaxcxr.models.features.densenet import WIDTH, DenseNet

SIZE = 224
"""Pixels a side of what the network takes."""
PATHOLOGIES = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
    "Lung Lesion",
    "Fracture",
    "Lung Opacity",
    "Enlarged Cardiomediastinum",
)
"""The findings that the outputs are of, in order, by torchxrayvision's names."""
OPERATING_POINTS = (
    0.07422872,
    0.038290843,
    0.09814756,
    0.0098118475,
    0.023601074,
    0.0022490358,
    0.010060724,
    0.103246614,
    0.056810737,
    0.026791653,
    0.050318155,
    0.023985857,
    0.01939503,
    0.042889766,
    0.053369623,
    0.035975814,
    0.20204692,
    0.05015312,
)
"""For each finding the probability above which torchxrayvision says that it is there."""
_CLEAN_FID = 299
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's; their sum is 0.9999, so gray pictures darken a little


def calibrated(probabilities: jax.Array, operating_points: jax.Array) -> jax.Array:
    """Probabilities stretched such that an operating point becomes 0.5, as torchxrayvision's `op_norm` does.

    Below the point t, p becomes p / 2t; from it on, 1 − (1 − p) / 2(1 − t).

    Args:
      probabilities: (..., findings), 0 to 1.
      operating_points: (findings,); where one is NaN, as for a finding that a network was not trained on, the result
        is 0.5.

    Returns:
      float32 (..., findings), 0 to 1.
    """
    known = jnp.where(jnp.isnan(operating_points), 0.5, operating_points)
    below, above = probabilities / (2 * known), 1 - (1 - probabilities) / (2 * (1 - known))
    stretched = jnp.where(probabilities < known, below, above)
    return jnp.where(jnp.isnan(operating_points), 0.5, stretched)


def scores(logits: jax.Array) -> jax.Array:
    """Logits (..., 18) of the classifier to scores of `PATHOLOGIES`, float32 (..., 18); 0.5 is the operating point."""
    return calibrated(jax.nn.sigmoid(logits), jnp.asarray(OPERATING_POINTS, jnp.float32))


def network(rngs: nnx.Rngs) -> DenseNet:
    """The network up to the features."""
    return DenseNet(in_channels=1, rngs=rngs)


def classifier(rngs: nnx.Rngs) -> DenseNet:
    """The network with the 18 outputs, which its `logits` gives."""
    return DenseNet(in_channels=1, classes=len(PATHOLOGIES), rngs=rngs)


def read(file: Path) -> Weights:
    """Reads the features' weights from torchxrayvision's file, or from one of its state dict.

    Raises:
      UserError: the file cannot be read or is of another network.
    """
    return _read(file, network, ("classifier.", "op_threshs"))


def read_classifier(file: Path) -> Weights:
    """As `read`, with the weights of the 18 outputs."""
    return _read(file, classifier, ("op_threshs",))


def _read(file: Path, build: Callable[[nnx.Rngs], DenseNet], without: tuple[str, ...]) -> Weights:
    return read_weights(file, build, lambda name: None if name.startswith(without) else name)


def _scaled(array: np.ndarray) -> np.ndarray:
    """0..255 to −1024..1024."""
    return (2 * (array / np.float32(255)) - 1) * 1024


def _square(image: Image.Image, antialias: bool) -> np.ndarray:
    """A square picture as the network takes it, (224, 224, 1).

    Raises:
      UserError: the picture is not square.
    """
    if image.width != image.height:
        raise UserError(
            f"a picture of {image.width} x {image.height} pixels: torchxrayvision takes square ones alone; crop or pad"
            " it to a square, or choose the preprocessing roentgen, which squashes"
        )
    return torch_bilinear(_scaled(pixels(gray(image))), (SIZE, SIZE), antialias)


def _roentgen(image: Image.Image, antialias: bool) -> np.ndarray:
    """A picture of any size as RoentGen's script hands it to the network, (224, 224, 1)."""
    squashed = pil_float_bicubic(rgb(image), (_CLEAN_FID, _CLEAN_FID))
    luma = squashed @ np.array(_LUMA, np.float32)[:, None]
    return torch_bilinear(_scaled(luma), (SIZE, SIZE), antialias)


XRV = Extractor(
    width=WIDTH,
    network=network,
    preprocessings={
        "xrv": functools.partial(_square, antialias=True),
        "xrv-no-antialias": functools.partial(_square, antialias=False),
        "roentgen": functools.partial(_roentgen, antialias=True),
        "roentgen-no-antialias": functools.partial(_roentgen, antialias=False),
    },
    source=(
        "make torchxrayvision's DenseNet(weights='densenet121-res224-all') once, which keeps the file"
        " nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt in"
        " ~/.torchxrayvision/models_data"
    ),
    read=read,
)
