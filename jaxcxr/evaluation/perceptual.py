"""LPIPS of pairs of images: the files of its weights, and the distances on all devices."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxcxr import hub
from jaxcxr.errors import UserError
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.extractors.extractor import Weights, fitted, open_weights
from jaxcxr.interop.tensors import Tensor
from jaxcxr.interop.wanted import of_weights
from jaxcxr.models.features.lpips import NETS, Lpips
from jaxcxr.models.named import with_parameters
from jaxcxr.models.vae import normalize

PACKAGE = "lpips"
"""What to install with pip for the heads."""
BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""torchvision's files of the networks, by net."""


def read(net: str, backbone: Path, heads: Path | None = None, *, calibrated: bool = True) -> Weights:
    """The weights of LPIPS, float32 by name.

    Args:
      net: a key of `NETS`.
      backbone: torchvision's file, here or as ORG/NAME:FILE of the hub; what belongs to its `classifier` is left out.
      heads: the file of the package lpips, v0.1; the `bundled` one where none is given.
      calibrated: whether the weights of channels, which are in `heads`, are needed.

    Raises:
      UserError: there is no such net, or a file is absent, cannot be read, or is of another network.
    """
    build = _builder(net, calibrated)
    backbone = hub.find(backbone, of_weights(BACKBONES[net]))
    if not backbone.is_file():
        raise UserError(f"{backbone}: no such file; LPIPS ({net}) needs torchvision's {BACKBONES[net]}")
    heads = (hub.find(heads, of_weights(f"{net}.pth")) if heads else bundled(net)) if calibrated else None
    if calibrated and heads is None:
        raise UserError(f"LPIPS ({net}): has no file of its heads; install the package {PACKAGE} with pip, or name one")
    found: dict[str, Tensor] = {}
    for file, prefix in ((backbone, "features."), *(((heads, "lin"),) if heads else ())):
        own = {name: tensor for name, tensor in open_weights(file).items() if name.startswith(prefix)}
        if not own:
            wanted = BACKBONES[net] if prefix == "features." else f"{PACKAGE}'s weights/v0.1/{net}.pth"
            raise UserError(f"{file}: has no {prefix}* of LPIPS ({net}); name {wanted}")
        found |= own
    return fitted(found, f"{backbone} with {heads}" if heads else str(backbone), build)


def bundled(net: str) -> Path | None:
    """The file of the heads that the installed package has; nothing of the package is run."""
    package = importlib.util.find_spec(PACKAGE)
    folders = (package.submodule_search_locations if package else None) or ()
    files = (Path(folder, "weights", "v0.1", f"{net}.pth") for folder in folders)
    return next((file for file in files if file.is_file()), None)


def distances(
    net: str, weights: Weights, first: np.ndarray, second: np.ndarray, batch_size: int = 16, mesh: Mesh | None = None
) -> np.ndarray:
    """LPIPS of each pair, float32 (N,).

    Args:
      net: a key of `NETS`.
      weights: its weights by name.
      first: images, uint8 (N, H, W).
      second: images of the same shape.
      batch_size: pairs at once, of all devices together.
      mesh: the devices; all there are if None.

    Raises:
      UserError: there is no such net, the weights are of another one, or the images are too small for it.
    """
    build = _builder(net, True)
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))

    def compute(weights: Mapping[str, jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
        return with_parameters(module, weights)(normalize(a[..., None], 1), normalize(b[..., None], 1))

    return np.concatenate([*InBatches(compute, weights, batch_size, mesh)(first, second)])


@functools.cache
def _builder(net: str, calibrated: bool) -> "functools.partial[Lpips]":
    """Makes the network; one function for each net, as shapes are kept by function."""
    if net not in NETS:
        raise UserError(f"LPIPS net {net!r:.100}: is not known; give {' or '.join(NETS)}")
    return functools.partial(_build, net, calibrated)


def _build(net: str, calibrated: bool, rngs: nnx.Rngs) -> Lpips:
    return Lpips(net, calibrated=calibrated, rngs=rngs)
