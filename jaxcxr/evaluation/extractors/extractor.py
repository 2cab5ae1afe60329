"""What an extractor is, and how the files of its weights are read."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import from_torch
from jaxcxr.interop.pickled_modules import open_pickled_module
from jaxcxr.interop.tensors import Tensors, open_safetensors
from jaxcxr.models.named import named_parameters

Preprocess = Callable[[Image.Image], np.ndarray]
"""A picture of mode L or RGB -> what the network takes of it, float32 (H, W, C), of one shape for every picture."""

DAMAGED = "the file may be damaged"
"""What to say of a file whose content makes no sense."""

Weights = dict[str, np.ndarray]
"""Parameters, float32, by their names in the network."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network that makes a vector of an image, and all that decides which.

    Attributes:
      width: of the vector.
      network: makes it; called with (B, H, W, C) float32 it returns (B, width) float32.
      preprocessings: by name; the first is the usual one.
      source: what to do to have a file of its weights, for a message.
      read: reads such a file; raises UserError where it is of another network.
      bundled: the file that an installed package has, or None.
      besides: further files that it reads, where it is given a folder.
      text: (the file of the weights, texts) -> float32 (N, width), of a network that embeds texts too.
    """

    width: int
    network: Callable[[nnx.Rngs], nnx.Module]
    preprocessings: Mapping[str, Preprocess]
    source: str
    read: Callable[[Path], Weights]
    bundled: Callable[[], Path | None] = lambda: None
    besides: tuple[str, ...] = ()
    text: Callable[[Path, Sequence[str]], np.ndarray] | None = None


def read_weights(
    file: Path, network: Callable[[nnx.Rngs], nnx.Module], rename: Callable[[str], str | None] = lambda name: name
) -> Weights:
    """Reads a network's weights from a file of PyTorch's or safetensors, or from a folder of transformers.

    Args:
      file: the file or folder.
      network: makes the network.
      rename: a tensor's name in the file -> its PyTorch name in the network; None where it has no place there.

    Raises:
      UserError: the file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    return fitted(open_weights(file), str(file), network, rename)


def open_weights(path: Path) -> Tensors:
    """The tensors of a file of PyTorch's or safetensors, or of a folder of transformers that has one.

    Raises:
      UserError: it cannot be read.
    """
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: has neither {' nor '.join(names)}; name the file of the weights")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the file of the weights")
    return open_safetensors(path) if path.suffix == ".safetensors" else open_pickled_module(path)


def require_config(file: Path, config: Any, part: Any, published: str) -> None:
    """Sees that the `config.json` beside the weights, if there is one, describes the network `config`.

    Args:
      file: a file of weights or the folder of one.
      config: a dataclass with the defaults of transformers.
      part: takes the description, and what to call it, of what the file holds; raises UserError where there is none.
      published: the folder to get instead.

    Raises:
      UserError: the file cannot be read, or a value differs.
    """
    path = (file if file.is_dir() else file.parent) / "config.json"
    if not path.is_file():
        return
    described, prefix = part(parsing.read_json(path, dict[str, Any], remedy=DAMAGED), path)
    for field in dataclasses.fields(config):
        found, wanted = described.get(field.name, field.default), getattr(config, field.name)
        if found != wanted:
            raise UserError(
                f"{path}: {prefix}{field.name} is {found!r:.50}, this extractor has {wanted!r}; give {published}"
            )


def fitted(
    tensors: Tensors,
    where: str,
    network: Callable[[nnx.Rngs], nnx.Module],
    rename: Callable[[str], str | None] = lambda name: name,
) -> Weights:
    """A file's tensors as a network's weights; arguments and errors are those of `read_weights`."""
    expected = _shapes(network)
    found: Weights = {}
    for name, tensor in tensors.items():
        own = rename(name)
        if own is None or own.endswith("num_batches_tracked"):
            continue
        try:
            key, value = from_torch(own, tensor)
        except ValueError as error:
            raise UserError(f"{where}: {name} has no place in this network; name a file of its weights") from error
        if key not in expected or tuple(value.shape) != expected[key]:
            wanted = f"shape {expected[key]} is expected" if key in expected else "there is no such tensor"
            raise UserError(f"{where}: is of another network: {name} has shape {tuple(tensor.shape)}; here {wanted}")
        found[key] = np.asarray(value.require_finite(f"{where}: {name}").read(), np.float32)
    if missing := [key for key in expected if key not in found]:
        raise UserError(f"{where}: is of another network: {missing[0]} is missing, with {len(missing) - 1} others")
    return found


@functools.cache
def _shapes(network: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, tuple[int, ...]]:
    module = nnx.eval_shape(lambda: network(nnx.Rngs(0)))
    return {name: tuple(value.shape) for name, value in named_parameters(module).items()}


def digest(weights: Weights) -> str:
    """A digest of weights by name: equal where every value is."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        whole.update(name.encode() + str(value.shape).encode() + value.tobytes())
    return whole.hexdigest()


def abstract_network(extractor: Extractor) -> nnx.Module:
    """The extractor's network with shapes in place of arrays."""
    return nnx.eval_shape(lambda: extractor.network(nnx.Rngs(jax.random.key(0))))
