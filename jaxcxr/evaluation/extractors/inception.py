"""Inception v3 of the Fréchet Inception distance (arXiv 1706.08500), with the preprocessing of four libraries."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import resizing
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, fitted, open_weights
from jaxcxr.models.features.inception import InceptionV3

_FILE = "pt_inception-2015-12-05-6726825d.pth"
_SIZE = (299, 299)
_CLASSIFIER = (1008, 2048)  # of TensorFlow's network; torchvision's own weights are another training, of 1000 classes


def _read(file: Path) -> Weights:
    if _is_torchscript(file):
        raise UserError(f"{file}: is a TorchScript program, which is not read; {_FILE} has the same weights")
    tensors = open_weights(file)
    classifier = tensors.get("fc.weight")
    if classifier is not None and tuple(classifier.shape) != _CLASSIFIER:
        shape = tuple(classifier.shape)
        raise UserError(f"{file}: is of another network: fc.weight has shape {shape}, not {_CLASSIFIER}; name {_FILE}")
    return fitted(tensors, str(file), InceptionV3, lambda name: None if name.startswith("fc.") else name)


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged file may provoke any; what reads it says what is wrong
        return False


def _rgb(array: np.ndarray) -> np.ndarray:
    """Three equal channels of one; gray is resized once."""
    return array if array.shape[-1] == 3 else np.repeat(array, 3, axis=-1)


def _centred(array: np.ndarray) -> np.ndarray:
    """Values in 0..255 to −1..127/128."""
    return _rgb((array - 128) / 128)


def _clean_fid(image: Image.Image) -> np.ndarray:
    return _centred(resizing.pil_float_bicubic(image, _SIZE))


def _pytorch_fid(image: Image.Image) -> np.ndarray:
    return _rgb(2 * resizing.torch_bilinear(resizing.pixels(image) / 255, _SIZE) - 1)


def _torch_fidelity(image: Image.Image) -> np.ndarray:
    return _centred(resizing.tf1_bilinear(resizing.pixels(image), _SIZE))


def _torchmetrics(image: Image.Image) -> np.ndarray:
    return _centred(resizing.torch_bilinear(resizing.pixels(image), _SIZE, antialias=True))


INCEPTION = Extractor(
    width=2048,
    network=InceptionV3,
    preprocessings={
        "clean-fid": _clean_fid,
        "pytorch-fid": _pytorch_fid,
        "torch-fidelity": _torch_fidelity,  # and torchmetrics before 1.8
        "torchmetrics": _torchmetrics,  # from 1.8 on
    },
    source=f"download {_FILE} from the releases of github.com/mseitzer/pytorch-fid",
    read=_read,
)
"""Inception v3; its weights' licence is Apache-2.0."""
