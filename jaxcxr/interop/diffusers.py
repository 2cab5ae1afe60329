"""diffusers folders in and out: names by rule, layouts by leaf, nothing missing, nothing left over."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.interop.pipeline import NETWORKS, StableDiffusion, from_files, model_index, write_files

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_TOGETHER = "do config.json and weights belong together?"
_FOLDERS = (*NETWORKS, "tokenizer", "scheduler")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx"}
# Buffers that old transformers versions saved; they hold 0 … 76.
_BUFFERS = {"text_model.embeddings.position_ids"}
# What diffusers ≤ 0.17 called the projections of the autoencoder's attention.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(path: str | Path, *, dtype: Any = jnp.float32, only: Iterable[str] | None = None) -> StableDiffusion:
    """Reads a diffusers folder.

    Args:
      path: a folder with `unet/`, `vae/` or `text_encoder/` in it.
      dtype: the networks' compute dtype; parameters are float32.
      only: the networks wanted, by the keys of `NETWORKS`; all that are there if None.

    Raises:
      UserError: a file is absent or broken, or a tensor is missing, unexpected or misshapen, with its key.
    """
    path = Path(path)
    pipeline = from_files(read_files(path), dtype, only)
    if not pipeline.networks:
        raise UserError(f"{path}: no network here; a diffusers folder has unet/config.json, vae/config.json, …")
    expected = pipeline.parameters()
    found: dict[str, np.ndarray] = {}
    for network in pipeline.networks:
        file = path / network / WEIGHTS[network]
        for key, tensor in _read_tensors(file).items():
            key = _modern_name(network, key)
            if key in _BUFFERS:
                continue
            name, value = from_torch(key, tensor)
            found[f"{network}.{name}"] = value
    check_parameters(expected, found, str(path))
    return pipeline.with_parameters({name: jnp.asarray(found.pop(name), jnp.float32) for name in expected})


def save(pipeline: StableDiffusion, path: str | Path, *, dtype: Any = np.float32) -> None:
    """Writes a diffusers folder that `StableDiffusionPipeline.from_pretrained` reads; all of it or nothing.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    from safetensors.numpy import save_file

    parameters = pipeline.parameters()
    files = dict(pipeline.files)
    files["model_index.json"] = _index(files)
    with new_folder(path) as folder:
        write_files(folder, files)
        for network in pipeline.networks:
            tensors = {}
            for full_name in [name for name in parameters if name.startswith(f"{network}.")]:
                value = np.asarray(jax.device_get(parameters[full_name])).astype(dtype)
                key, tensor = to_torch(full_name.removeprefix(f"{network}."), value)
                tensors[key] = np.ascontiguousarray(tensor)
            save_file(tensors, folder / network / WEIGHTS[network], metadata={"format": "pt"})


def read_files(path: Path) -> dict[str, bytes]:
    """Every file of a diffusers folder but the weights, by its path in the folder.

    Raises:
      UserError: `path` is not a folder, or a JSON file in it cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    candidates = [path / "model_index.json", *(file for part in _FOLDERS for file in sorted((path / part).rglob("*")))]
    files = {}
    for file in candidates:
        if file.is_file() and file.suffix not in _WEIGHT_SUFFIXES and not file.name.endswith(".index.json"):
            files[file.relative_to(path).as_posix()] = file.read_bytes()
    for name, data in files.items():
        if name.endswith("config.json") or name == "model_index.json":
            try:
                json.loads(data)
            except ValueError as error:
                raise UserError(f"{path / name}: not JSON ({error}); copy the file again") from error
    return files


def check_parameters(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raises a UserError naming the first parameter that is missing, unexpected or of another shape."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for problem, names in (("is missing", missing), ("is not one the config describes", unexpected)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{where}: parameter {names[0]} {problem}{more}; {_TOGETHER}")
    for name, value in expected.items():
        if tuple(found[name].shape) != tuple(value.shape):
            raise UserError(
                f"{where}: parameter {name} has shape {tuple(found[name].shape)}, the config asks for"
                f" {tuple(value.shape)}; {_TOGETHER}"
            )


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise UserError(f"{file}: no such file; this checkpoint is not complete")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); copy the file again") from error


def _modern_name(network: str, key: str) -> str:
    """The name that today's diffusers and transformers 4 give a tensor."""
    if network == "text_encoder" and not key.startswith("text_model."):
        return f"text_model.{key}"  # transformers 5 writes the inner model without its prefix
    if network == "vae" and ".attentions." in key:
        for old, new in _OLD_ATTENTION.items():
            key = key.replace(f".{old}.", f".{new}.")
    return key


def _index(files: Mapping[str, bytes]) -> bytes:
    """The folder's own index, less the parts that are not carried: safety checker and feature extractor."""
    if "model_index.json" not in files:
        return model_index(files)
    index = json.loads(files["model_index.json"])
    dropped = {part: [None, None] for part in ("safety_checker", "feature_extractor") if index.get(part, [None])[0]}
    if not dropped:
        return files["model_index.json"]
    return (json.dumps(index | dropped | {"requires_safety_checker": False}, indent=2) + "\n").encode()
