"""diffusers folders in and out: names by rule, layouts by leaf, nothing missing, nothing left over."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.interop.checkpoint import TOGETHER, Checkpoint
from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.interop.pickled import open_pickled
from jaxcxr.interop.pipeline import NETWORKS, model_index, network_class, write_files
from jaxcxr.interop.tensors import Tensor, open_safetensors, open_sharded, write_safetensors

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_FOLDERS = (*NETWORKS, "tokenizer", "scheduler")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx"}
# What old transformers versions saved beside the parameters: 0 … 76, and the heads BERT was trained with.
_STRAYS = ("text_model.embeddings.position_ids", "embeddings.position_ids", "cls.", "lm_head.")
# What diffusers ≤ 0.17 called the projections of the autoencoder's attention.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What the first BERT checkpoints called the parameters of a norm.
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read(path: Path, only: Iterable[str] | None = None) -> Checkpoint:
    """Opens a diffusers folder; its tensors are read when asked for.

    Args:
      path: a folder with `unet/`, `vae/` or `text_encoder/` in it.
      only: the networks wanted, by the keys of `NETWORKS`; all that are there if None.

    Raises:
      UserError: a file is absent or broken, or a tensor is of no layer that a network of ours has.
    """
    files = read_files(path)
    tensors: dict[str, Tensor] = {}
    for network in [name for name in NETWORKS if f"{name}/config.json" in files and (only is None or name in only)]:
        tensors |= _read_network(network, path / network, files)
    if not tensors:
        raise UserError(f"{path}: no network here; a diffusers folder has unet/config.json, vae/config.json, …")
    return Checkpoint(_without_absent_pooler(files, tensors), tensors)


def has_weights(path: Path) -> bool:
    """Whether there are weights of PyTorch's, which a folder may have beside Flax's."""
    return any(next((path / name).glob(f"*{suffix}"), None) for name in NETWORKS for suffix in (".safetensors", ".bin"))


def is_encoder(path: Path) -> bool:
    """Whether `path` is a folder of transformers: a text encoder by itself, its tokenizer's files beside it."""
    return (path / "config.json").is_file() and not (path / "model_index.json").is_file()


def read_encoder(path: Path) -> Checkpoint:
    """Opens a folder of transformers as a pipeline that has a text encoder and a tokenizer alone.

    Raises:
      UserError: as `read`.
    """
    here = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name in tokens.FILES}
    files = {f"tokenizer/{name}": data for name, data in here.items()}
    files["text_encoder/config.json"] = (path / "config.json").read_bytes()
    _check_json(files, path)
    tensors = _read_network("text_encoder", path, files)
    return Checkpoint(_without_absent_pooler(files, tensors), tensors)


def write(checkpoint: Checkpoint, path: str | Path, *, dtype: Any = None, max_shard_size: int | None = None) -> None:
    """Writes a diffusers folder that `StableDiffusionPipeline.from_pretrained` reads; all of it or nothing.

    Args:
      checkpoint: of a whole pipeline or of some networks.
      path: the folder, new.
      dtype: of the floating-point tensors; each keeps its own if None.
      max_shard_size: bytes; a network of more is split into shards with an index.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    files = checkpoint.files | {"model_index.json": _index(checkpoint.files)}
    with new_folder(path) as folder:
        write_files(folder, files)
        for network in checkpoint.networks:
            tensors = dict(to_torch(name, tensor) for name, tensor in checkpoint.under(network).items())
            write_safetensors(folder / network / WEIGHTS[network], tensors, dtype=dtype, max_shard_size=max_shard_size)


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
    _check_json(files, path)
    return files


def _check_json(files: Mapping[str, bytes], path: Path) -> None:
    for name, data in files.items():
        if name.endswith("config.json") or name == "model_index.json":
            try:
                content = json.loads(data)
            except ValueError as error:
                raise UserError(f"{path / name}: not JSON ({error}); copy the file again") from error
            if not isinstance(content, dict):
                raise UserError(f"{path / name}: is not a JSON object; copy the file again")


def _read_network(network: str, folder: Path, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of one network under their full names here."""
    config = json.loads(files[f"{network}/config.json"])
    tensors: dict[str, Tensor] = {}
    network_class(network, config)  # another family is told by its name, rather than by its first tensor's
    for key, tensor in _open_weights(folder, WEIGHTS[network]).items():
        key = _modern(network, config, key)
        if key.startswith(_STRAYS):
            continue
        try:
            name, tensor = from_torch(key, tensor)
        except ValueError as error:
            raise UserError(f"{folder}: {error}; {TOGETHER}") from error
        tensors[f"{network}.{name}"] = tensor
    return tensors


def _open_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a network's folder, from the first there is of: whole precision, half, PyTorch's pickles."""
    stem = name.removesuffix(".safetensors")
    pickle = "pytorch_model" if stem == "model" else stem
    for variant in ("", ".fp16"):
        if (file := folder / f"{stem}{variant}.safetensors").is_file():
            return open_safetensors(file)
        if (file := folder / f"{stem}.safetensors.index{variant}.json").is_file():
            return open_sharded(file, open_safetensors)
    for variant in ("", ".fp16"):
        if (file := folder / f"{pickle}{variant}.bin").is_file():
            return open_pickled(file)
        if (file := folder / f"{pickle}.bin.index{variant}.json").is_file():
            return open_sharded(file, open_pickled)
    raise UserError(f"{folder / name}: no such file; this checkpoint is not complete")


def _modern(network: str, config: Mapping[str, Any], key: str) -> str:
    """The name that today's diffusers and transformers 4 give a tensor."""
    if network == "text_encoder":
        family = config.get("model_type", "clip")
        if family in ("bert", "roberta"):
            key = key.removeprefix(f"{family}.")  # a checkpoint of the encoder under one of its heads
            for old, new in _OLD_NORM.items():
                key = key.replace(old, new)
        elif not key.startswith("text_model."):
            key = f"text_model.{key}"  # transformers 5 writes the inner model without its prefix
    if network == "vae" and ".attentions." in key:
        for old, new in _OLD_ATTENTION.items():
            key = key.replace(f".{old}.", f".{new}.")
    return key


def _without_absent_pooler(files: dict[str, bytes], tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """`files`, telling that a BERT came without its pooler, where it did."""
    name = "text_encoder/config.json"
    if (
        "text_encoder.embeddings.word_embeddings.embedding" not in tensors
        or "text_encoder.pooler.dense.kernel" in tensors
    ):
        return files
    config = json.loads(files[name]) | {"add_pooling_layer": False}
    return files | {name: (json.dumps(config, indent=2) + "\n").encode()}


def _index(files: Mapping[str, bytes]) -> bytes:
    """The folder's own index, less the parts that are not carried: safety checker and feature extractor."""
    if "model_index.json" not in files:
        return model_index(files)
    index = json.loads(files["model_index.json"])
    dropped = {part: [None, None] for part in ("safety_checker", "feature_extractor") if index.get(part, [None])[0]}
    if not dropped:
        return files["model_index.json"]
    return (json.dumps(index | dropped | {"requires_safety_checker": False}, indent=2) + "\n").encode()
