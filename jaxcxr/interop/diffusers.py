"""diffusers folders in and out: names by rule, layouts by leaf, nothing missing, nothing left over."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxcxr import parsing
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.interop import refused
from jaxcxr.interop.checkpoint import TOGETHER, Checkpoint
from jaxcxr.interop.config_files import (
    CLASSIFIER,
    CONTROLNET,
    NETWORKS,
    PUBLISHED,
    model_index,
    network_class,
    parse_index,
    parse_object,
)
from jaxcxr.interop.folder import CARRIED, OWN, has_file, read_carried, weight_files
from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.interop.pickled import open_pickled
from jaxcxr.interop.pipeline import write_files
from jaxcxr.interop.tensors import Tensor, open_safetensors, open_sharded, write_safetensors

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    CLASSIFIER: "model.safetensors",
    CONTROLNET: "diffusion_pytorch_model.safetensors",
}
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
      only: the networks wanted, by the keys of `NETWORKS`; all that are there if None. Other names want files alone.

    Raises:
      UserError: a file is absent or broken, or a tensor is of no layer that a network of ours has.
    """
    files = read_files(path, CARRIED | OWN)
    tensors: dict[str, Tensor] = {}
    wanted = [name for name in PUBLISHED if only is None or name in only]
    for network in [name for name in wanted if f"{name}/config.json" in files]:
        tensors |= _read_network(network, path / network, path, files)
    if wanted and not tensors:
        refused.check_files(path)
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
    here = {
        name: parsing.read_bytes(path / name) for name in (*tokens.FILES, "config.json") if has_file(path / name, path)
    }
    config = here.pop("config.json")
    files = {f"tokenizer/{name}": data for name, data in here.items()} | {"text_encoder/config.json": config}
    refused.check_network(path, parse_object(str(path / "config.json"), config))
    tensors = _read_network("text_encoder", path, path, files)
    return Checkpoint(_without_absent_pooler(files, tensors), tensors)


def read_controlnet(path: Path) -> Checkpoint:
    """Opens a folder with a ControlNet alone, as diffusers saves one.

    Raises:
      UserError: as `read`, or it is of something else.
    """
    files = read_carried(path, {"": ("config.json",)})
    if "config.json" not in files:
        raise UserError(f"{path}: has no config.json; a ControlNet is a folder with config.json and its weights")
    own = {f"{CONTROLNET}/config.json": files["config.json"]}
    return Checkpoint(own, _read_network(CONTROLNET, path, path, own))


def write_controlnet(checkpoint: Checkpoint, path: str | Path, *, dtype: Any = None) -> None:
    """Writes the ControlNet of a checkpoint alone, a folder that `ControlNetModel.from_pretrained` reads.

    Raises:
      UserError: there is none, or `path` exists or cannot be written.
    """
    if CONTROLNET not in checkpoint.networks:
        raise UserError(f"there is no ControlNet to write; the checkpoint has {', '.join(checkpoint.networks)}")
    with new_folder(path) as folder:
        write_files(folder, {"config.json": checkpoint.files[f"{CONTROLNET}/config.json"]})
        tensors = dict(to_torch(name, tensor) for name, tensor in checkpoint.under(CONTROLNET).items())
        write_safetensors(folder / WEIGHTS[CONTROLNET], tensors, dtype=dtype)


def write(checkpoint: Checkpoint, path: str | Path, *, dtype: Any = None, max_shard_size: int | None = None) -> None:
    """Writes a diffusers folder that `StableDiffusionPipeline.from_pretrained` reads; all of it or nothing.

    Args:
      checkpoint: of a whole pipeline or of some networks.
      path: the folder, new.
      dtype: of the floating-point tensors; each keeps its own if None.
      max_shard_size: bytes; a network of more is split into shards with an index.

    Raises:
      UserError: `path` exists or cannot be written, or a network has what diffusers does not.
    """
    _check_known(checkpoint.files)
    files = checkpoint.files | {"model_index.json": _index(checkpoint.files)}
    with new_folder(path) as folder:
        write_files(folder, files)
        for network in checkpoint.networks:
            tensors = dict(to_torch(name, tensor) for name, tensor in checkpoint.under(network).items())
            write_safetensors(folder / network / WEIGHTS[network], tensors, dtype=dtype, max_shard_size=max_shard_size)


def read_files(path: Path, carried: Mapping[str, tuple[str, ...]] = CARRIED) -> dict[str, bytes]:
    """The files of a diffusers folder that are carried, so not the weights, by their path in the folder.

    Raises:
      UserError: `path` is not a folder or another family's pipeline, or a file in it cannot be read or is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    files = read_carried(path, carried)
    index = parse_index(str(path / "model_index.json"), files.get("model_index.json", b"{}"))
    refused.check_pipeline(path, index)
    for name, data in files.items():
        if name.endswith("config.json"):
            parse_object(str(path / name), data)
    return files


def unknown_to_diffusers(files: Mapping[str, bytes]) -> str:
    """What of the networks of these files diffusers does not have, in words; empty if it has all of it."""
    unet = parse_object("unet/config.json", files.get("unet/config.json", b"{}"))
    return "a projection of text with a hidden layer" if unet.get("encoder_hid_dim_type") == "text_mlp" else ""


def _check_known(files: Mapping[str, bytes]) -> None:
    if what := unknown_to_diffusers(files):
        raise UserError(
            f"unet/config.json: asks for {what}, which diffusers does not have; write it with --to orbax, or train"
            " config.model.text_encoder_fit=linear"
        )


def _read_network(network: str, folder: Path, root: Path, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of one network under their full names here."""
    config = parse_object(f"{network}/config.json", files[f"{network}/config.json"])
    tensors: dict[str, Tensor] = {}
    network_class(network, config)  # another family is refused by its name, rather than by its first tensor's
    for key, tensor in _open_weights(folder, WEIGHTS[network], root).items():
        key = _modern(network, config, key)
        if key.startswith(_STRAYS):
            continue
        try:
            name, tensor = from_torch(key, tensor)
        except ValueError as error:
            raise UserError(f"{folder}: {error}; {TOGETHER}") from error
        tensors[f"{network}.{name}"] = tensor
    return tensors


def _open_weights(folder: Path, name: str, root: Path) -> dict[str, Tensor]:
    """The tensors of a network's folder, from the first there is of `weight_files`."""
    for each in weight_files(name):
        open_file: Any = open_safetensors if each.suffix == "safetensors" else open_pickled

        def open_here(file: Path, open_file: Any = open_file) -> dict[str, Tensor]:
            has_file(file, root)  # or it links elsewhere; one that is absent is named by its reader
            return open_file(file)

        if has_file(file := folder / each.name, root):
            return open_sharded(file, open_here) if each.is_index else open_file(file)
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
    config = parse_object(name, files[name]) | {"add_pooling_layer": False}
    return files | {name: parsing.to_json(config)}


def _index(files: Mapping[str, bytes]) -> bytes:
    """The folder's own index, less the parts that are not carried: safety checker and feature extractor."""
    if "model_index.json" not in files:
        return model_index(files)
    index = parse_index("model_index.json", files["model_index.json"])
    unused = ("safety_checker", "feature_extractor")
    dropped = {part: [None, None] for part in unused if (index.get(part) or [None])[0]}
    if not dropped:
        return files["model_index.json"]
    return parsing.to_json(index | dropped | {"requires_safety_checker": False})
