"""Folders with `.msgpack` weights: what Flax in diffusers ≤ 0.39 and transformers 4 wrote, and trainers after them.

Their networks have our parameters in our layouts under names that differ by rule: a list's item is `name_0` where
ours is `name.0`, and the autoencoder's attention has its old names. The text encoder's names are ours.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.errors import UserError, one_line
from jaxcxr.interop.checkpoint import Checkpoint, check_blocks, check_parameters
from jaxcxr.interop.config_files import NETWORKS
from jaxcxr.interop.diffusers import read_files
from jaxcxr.interop.folder import has_file
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor, require_name
from jaxcxr.parsing import to_json

WEIGHTS = {
    "unet": "diffusion_flax_model.msgpack",
    "vae": "diffusion_flax_model.msgpack",
    "text_encoder": "flax_model.msgpack",
}
"""The weights' file in each network's folder."""

# The projections of the autoencoder's attention kept the names of diffusers' first releases.
_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
# Buffers that old transformers versions saved; they hold 0 … 76.
_BUFFERS = {"text_encoder.text_model.embeddings.position_ids"}
# How the Flax networks compute, which config.json has beside what they are.
_HOW = {
    "attention_kernel",
    "flash_block_sizes",
    "flash_min_seq_length",
    "mesh",
    "precision",
    "quant",
    "split_head_dim",
    "use_memory_efficient_attention",
    "weights_dtype",
}


def is_flax(path: Path) -> bool:
    """Whether `path` is a folder with a network's weights in Flax's format."""
    return any((path / network / name).is_file() for network, name in WEIGHTS.items())


def read(path: Path) -> Checkpoint:
    """Reads a folder of Flax weights; class names in its files become those that PyTorch's diffusers loads.

    The tensors are in memory: this format cannot be read in parts.

    Raises:
      UserError: a file is absent or damaged, or a tensor is missing, unexpected or misshapen, with its name.
    """
    files = {name: _for_pytorch(name, content) for name, content in read_files(path).items()}
    networks = [network for network in NETWORKS if f"{network}/config.json" in files]
    if not networks:
        raise UserError(f"{path}: no network here; such a folder has unet/config.json, vae/config.json, …")
    legacy: dict[str, np.ndarray] = {}
    for network in networks:
        arrays = dict(_read_arrays(path / network / WEIGHTS[network], path))
        # Without the old names of a list's items, which its blocks are counted by.
        modern = [re.sub(r"_(\d+)(?=\.)", r".\1", name) for name in arrays]
        check_blocks(network, files[f"{network}/config.json"], modern, str(path))
        legacy |= {f"{network}.{name}": array for name, array in arrays.items()}
    expected = from_files(files, only=networks).parameters()
    ours = {_legacy_name(name): name for name in expected}
    found = {ours.get(name, name): Tensor.of(array) for name, array in legacy.items() if name not in _BUFFERS}
    check_parameters(expected, found, str(path))
    return Checkpoint(files, {name: found[name] for name in expected})


def _legacy_name(name: str) -> str:
    """The name that a Flax network gives the parameter `name`, dotted."""
    if name.startswith("text_encoder."):
        return name
    name = re.sub(r"\.(\d+)(?=\.)", r"_\1", name)
    if name.startswith("vae.") and ".attentions_" in name:
        module, projection, leaf = name.rsplit(".", 2)
        return f"{module}.{_VAE_ATTENTION.get(projection, projection)}.{leaf}"
    return name


def _read_arrays(file: Path, root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a `.msgpack` file, with its path in the tree, dotted."""
    from flax.serialization import msgpack_restore

    if not has_file(file, root):
        raise UserError(f"{file}: no such file; this checkpoint is not complete")
    try:
        tree = msgpack_restore(file.read_bytes())
        leaves = list(_leaves(tree))
    except Exception as error:  # msgpack, NumPy and Flax each have their own for what is damaged
        reason = one_line(error)
        raise UserError(f"{file}: cannot be read ({reason}); copy the file again") from error
    for name, value in leaves:
        if not isinstance(value, np.ndarray):
            raise UserError(
                f"{file}: {name or 'its content'} is no array but a {type(value).__name__}; copy the file again"
            )
        require_name(file, name)
        yield name, value


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            part = " ".join(str(key).split())  # it may appear in a message of one line
            yield from _leaves(value, f"{name}.{part}" if name else part)
    else:
        yield name, tree


def _for_pytorch(name: str, content: bytes) -> bytes:
    """A file of the folder without what only the Flax classes understand; the very file if there is nothing."""
    if name != "model_index.json" and not name.endswith("config.json"):
        return content
    config = json.loads(content)
    if not isinstance(config, dict):
        return content
    changed = {}
    for key, value in config.items():
        pair = name == "model_index.json" and isinstance(value, list)
        if key not in _HOW:
            changed[key] = _renamed(value) if pair or key in ("_class_name", "architectures") else value
    return content if changed == config else to_json(changed)


def _renamed(value: Any) -> Any:
    """A class as PyTorch's libraries call it, alone or in a list such as `["diffusers", "FlaxDDIMScheduler"]`."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if value == "maxdiffusion":
        return "diffusers"
    return re.sub("^Flax(?=[A-Z])", "", value) if isinstance(value, str) else value
