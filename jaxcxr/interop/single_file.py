"""Stable Diffusion 1 and 2 in one file of the original layout, in and out, one tensor in memory at a time."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcxr import hub
from jaxcxr.diffusion.samplers import DDIM
from jaxcxr.errors import UserError
from jaxcxr.files import new_file
from jaxcxr.interop import refused, wanted
from jaxcxr.interop.checkpoint import Checkpoint, check_parameters
from jaxcxr.interop.config_files import SCHEDULER_CONFIG, model_index, network_config, parse_object
from jaxcxr.interop.diffusers import read_files
from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.interop.original_names import (
    PREFIXES,
    Config,
    Place,
    ema_key,
    is_ignored,
    is_open_clip,
    other_family,
    place,
)
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor, Tensors, open_safetensors, write_safetensors
from jaxcxr.parsing import to_json

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_UNET = PREFIXES["unet"]
_VAE = PREFIXES["vae"]
_TEXT = PREFIXES["text_encoder"]
_CLIP = f"{_TEXT}transformer.text_model."
_OPEN_CLIP = f"{_TEXT}model."

_Shape = Callable[[str], tuple[int, ...]]


def read(
    path: str | Path, *, config: str | Path | None = None, prediction_type: str | None = None, ema: bool = True
) -> Checkpoint:
    """Opens a file of the original layout.

    Args:
      path: a `.safetensors`, `.ckpt`, `.pt` or `.pth` file.
      config: a diffusers folder, or the name of a repository of the hub, of which everything but the weights is
        taken. Without it the configs follow from the tensors' shapes, for networks of Stable Diffusion 1 and 2, and
        there is no tokenizer.
      prediction_type: what the U-Net predicts: epsilon, v_prediction or sample. Without it the config says so; where
        there is none, epsilon is taken for Stable Diffusion 1.
      ema: take the U-Net's averaged weights where there are any.

    Returns:
      The checkpoint; its networks are those of `config`, or else those in the file.

    Raises:
      UserError: the file cannot be read or is of another family; a tensor is missing, unexpected or misshapen, with
        its key; the configs do not follow from the tensors, or not what the U-Net predicts.
    """
    path = Path(path)
    if prediction_type not in (None, *_PREDICTION_TYPES):
        raise UserError(f"--prediction-type {prediction_type}: unknown; it may be {', '.join(_PREDICTION_TYPES)}")
    found = _open(path)
    refused.check_tensors(path, found)
    if family := other_family(found):
        raise UserError(f"{path}: is a {family} file; only Stable Diffusion 1 and 2 can be read")
    if not any(key.startswith(tuple(PREFIXES.values())) for key in found):
        raise UserError(f"{path}: has no tensor named {_UNET}… as Stable Diffusion's original files do")
    if config is None:
        files = _infer(found, path, prediction_type)
    else:
        folder = hub.find(config, wanted.of_checkpoint(weights=False))
        files = _with_prediction_type(read_files(folder), prediction_type)
    return Checkpoint(files, _pick(found, files, path, ema))


def write(checkpoint: Checkpoint, path: str | Path, *, dtype: Any = None) -> None:
    """Writes a file of the original layout, whole or not at all.

    It holds weights alone: neither the configs, nor what the U-Net predicts, nor the tokenizer.

    Args:
      checkpoint: its files must have the `config.json` of each of its networks.
      path: a new file, ending in `.safetensors`.
      dtype: to cast floating-point tensors to; each keeps its own if None.

    Raises:
      UserError: `path` exists, cannot be written or ends otherwise; the configs and the tensors do not belong
        together; the layout has no place for a network or a parameter.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: must end in .safetensors")
    with new_file(path) as partial:
        write_safetensors(partial, _originals(checkpoint), dtype=dtype)


def _open(path: Path) -> dict[str, Tensor]:
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        from jaxcxr.interop.pickled import open_pickled

        found = open_pickled(path)
    elif path.suffix == ".safetensors":
        found = open_safetensors(path)
    else:
        raise UserError(f"{path}: is neither .safetensors nor .ckpt, .pt, .pth, .bin")
    # Some writers leave out the name of the text encoder's inner model.
    bare = re.compile(rf"({re.escape(_TEXT)}transformer\.)(?=(embeddings|encoder|final_layer_norm)\.)")
    return {bare.sub(r"\1text_model.", key): tensor for key, tensor in found.items()}


class _Parameter(NamedTuple):
    """A parameter that the configs describe: its PyTorch name in its network and shape, and its place in the file."""

    torch_name: str
    torch_shape: tuple[int, ...]
    place: Place


def _describe(parameters: Mapping[str, Any], configs: Mapping[str, Config]) -> dict[str, _Parameter]:
    """`parameters`, arrays or stand-ins by full name, with what to look for in a file."""
    described = {}
    for full_name, value in parameters.items():
        network, _, name = full_name.partition(".")
        torch_name, stand_in = to_torch(name, np.broadcast_to(np.float32(0), value.shape))
        described[full_name] = _Parameter(torch_name, stand_in.shape, place(network, torch_name, configs[network]))
    return described


def _configs(files: Mapping[str, bytes]) -> dict[str, Config]:
    """The networks' configs, refused here if the layout has no place for the text encoder."""
    present = {name: file for name in PREFIXES if (file := f"{name}/config.json") in files}
    configs: dict[str, Config] = {name: parse_object(file, files[file]) for name, file in present.items()}
    if "text_encoder" in configs:
        is_open_clip(configs["text_encoder"])
    return configs


def _pick(found: Tensors, files: Mapping[str, bytes], path: Path, ema: bool) -> dict[str, Tensor]:
    """The tensors that the configs describe, in our layout; a UserError if there are fewer or more."""
    configs = _configs(files)
    averaged = ema and any(key.startswith("model_ema.diffusion_model") for key in found)
    picked, used = {}, set()
    for full_name, parameter in _describe(from_files(files).parameters(), configs).items():
        original = parameter.place.key
        used.add(original)
        key = ema_key(original) if averaged and original.startswith(_UNET) else original
        tensor = _require(found, key, path)
        if tensor.shape not in (allowed := _original_shapes(parameter)):
            raise UserError(
                f"{path}: tensor {key} has shape {tensor.shape}; for {full_name} the config asks for"
                f" {allowed[0]}; do config and file belong together?"
            )
        tensor = tensor.map(functools.partial(_take, parameter.place))
        picked[full_name] = tensor.map(functools.partial(_from_torch, parameter.torch_name))
    text_config = configs.get("text_encoder")
    for key in sorted(found.keys() - used):
        if key.startswith(tuple(PREFIXES.values())) and not is_ignored(key, text_config):
            raise UserError(
                f"{path}: tensor {key} is not one the config describes; name the diffusers folder it fits with --config"
            )
    return picked


def _require(found: Tensors, key: str, path: Path) -> Tensor:
    if key not in found:
        raise UserError(f"{path}: tensor {key} is missing; the file is not complete, or the config is not its own")
    return found[key]


def _original_shapes(parameter: _Parameter) -> list[tuple[int, ...]]:
    """The shapes that the tensor with this parameter in it may have in a file."""
    rows, *rest = parameter.torch_shape
    if parameter.place.third is not None:
        return [(3 * rows, *rest)]
    return [(rows, *rest), (rows, *rest, 1, 1)][:: -1 if parameter.place.pointwise else 1][
        : 1 + parameter.place.pointwise
    ]


def _take(where: Place, array: np.ndarray) -> np.ndarray:
    """The parameter in PyTorch's layout out of the tensor at its place."""
    if where.third is not None:
        rows = len(array) // 3
        return array[rows * where.third : rows * (where.third + 1)]
    return array.reshape(array.shape[:2]) if where.pointwise else array


def _originals(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's tensors under their names and in their shapes of the original layout."""
    if others := [name for name in checkpoint.networks if name not in PREFIXES]:
        raise UserError(f"{others[0]}: has no place in a single file; leave it out with --only {','.join(PREFIXES)}")
    configs = _configs(checkpoint.files)
    if without := [name for name in checkpoint.networks if name not in configs]:
        raise UserError(f"{without[0]}/config.json: is missing; the original layout's names depend on it")
    parameters = from_files(checkpoint.files, only=checkpoint.networks).parameters()
    check_parameters(parameters, checkpoint.tensors, "this checkpoint")
    tensors: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    for full_name, (_, _, where) in _describe(parameters, configs).items():
        tensor = checkpoint.tensors[full_name].map(functools.partial(_to_torch, full_name))
        if where.third is not None:
            fused.setdefault(where.key, {})[where.third] = tensor
        else:
            tensors[where.key] = tensor.map(lambda array: array[:, :, None, None]) if where.pointwise else tensor
    return tensors | {key: _stack([thirds[n] for n in range(3)]) for key, thirds in fused.items()}


def _from_torch(torch_name: str, array: np.ndarray) -> np.ndarray:
    return from_torch(torch_name, array)[1]


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    return to_torch(name, array)[1]


def _stack(parts: list[Tensor]) -> Tensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]))


def _with_prediction_type(files: dict[str, bytes], prediction_type: str | None) -> dict[str, bytes]:
    if prediction_type is None:
        return files
    scheduler = parse_object(SCHEDULER_CONFIG, files.get(SCHEDULER_CONFIG, b"{}")) or _scheduler("epsilon")
    return files | {SCHEDULER_CONFIG: to_json(scheduler | {"prediction_type": prediction_type})}


def _scheduler(prediction_type: str) -> dict[str, Any]:
    return DDIM(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).to_config()


def _infer(found: Tensors, path: Path, prediction_type: str | None) -> dict[str, bytes]:
    """The files of the diffusers folder, but the tokenizer's, for the networks in the file."""

    def shape(key: str) -> tuple[int, ...]:
        axes = _require(found, key, path).shape
        if len(axes) not in (2, 4):  # of a matrix or a convolution
            raise _unknown(path, f"{key} has {len(axes)} axes")
        return axes

    present = [name for name, prefix in PREFIXES.items() if any(key.startswith(prefix) for key in found)]
    files: dict[str, bytes] = {}
    size = 64
    if "unet" in present:
        unet = _infer_unet(found, shape, path)
        second = unet["cross_attention_dim"] == 1024
        if second and prediction_type is None:
            raise UserError(
                f"{path}: a Stable Diffusion 2 file does not say what it predicts; add --prediction-type epsilon"
                " (the 512-pixel models) or --prediction-type v_prediction (the 768-pixel models)"
            )
        if second and prediction_type == "v_prediction":
            size = 96
            unet["upcast_attention"] = True  # as published; in half precision that attention overflows
        files["unet/config.json"] = network_config("unet", unet | {"sample_size": size})
        files[SCHEDULER_CONFIG] = to_json(_scheduler(prediction_type or "epsilon"))
    if "vae" in present:
        files["vae/config.json"] = network_config("vae", _infer_vae(found, shape, path) | {"sample_size": 8 * size})
    if "text_encoder" in present:
        files["text_encoder/config.json"] = network_config("text_encoder", _infer_text_encoder(found, shape, path))
    return files | {"model_index.json": model_index(files)}


def _infer_unet(found: Tensors, shape: _Shape, path: Path) -> dict[str, Any]:
    halvings = [n for n in range(1, 100) if f"{_UNET}input_blocks.{n}.0.op.weight" in found]
    if not halvings:
        raise _unknown(path, "the U-Net has one level")
    # A level is its layers and, but for the last, a halving.
    blocks = [f"{_UNET}input_blocks.{1 + level * halvings[0]}" for level in range(len(halvings) + 1)]
    channels = [shape(f"{block}.0.out_layers.3.weight")[0] for block in blocks]
    attends = [f"{block}.1.proj_in.weight" in found for block in blocks]
    context = shape(f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1]
    if context not in (768, 1024):
        raise _unknown(path, f"the U-Net looks at {context} text features, not at 768 (SD 1) or 1024 (SD 2)")
    latent, seen = shape(f"{_UNET}out.2.weight")[0], shape(f"{_UNET}input_blocks.0.0.weight")[1]
    if latent not in (4, 8, 16) or seen not in (latent, 2 * latent + 1):
        raise _unknown(path, f"the U-Net makes {latent} channels of {seen}")
    return {
        "in_channels": seen,
        "out_channels": latent,
        "block_out_channels": channels,
        "down_block_types": [("CrossAttn" if attention else "") + "DownBlock2D" for attention in attends],
        "up_block_types": [("CrossAttn" if attention else "") + "UpBlock2D" for attention in reversed(attends)],
        "layers_per_block": halvings[0] - 1,
        "cross_attention_dim": context,
        # Heads, whatever the key says: 8 at every level in SD 1, of 64 channels each in SD 2.
        "attention_head_dim": 8 if context == 768 else [width // 64 for width in channels],
        "use_linear_projection": len(shape(f"{_UNET}middle_block.1.proj_in.weight")) == 2,
    }


def _infer_vae(found: Tensors, shape: _Shape, path: Path) -> dict[str, Any]:
    levels = _count(found, rf"{re.escape(_VAE)}encoder\.down\.(\d+)\.")
    latent = shape(f"{_VAE}decoder.conv_in.weight")[1]
    if levels != 4 or latent not in (4, 8, 16):
        raise _unknown(path, f"the autoencoder has {levels} levels and {latent} latent channels")
    return {
        "in_channels": shape(f"{_VAE}encoder.conv_in.weight")[1],
        "out_channels": shape(f"{_VAE}decoder.conv_out.weight")[0],
        "latent_channels": latent,
        "block_out_channels": [shape(f"{_VAE}encoder.down.{n}.block.0.conv2.weight")[0] for n in range(levels)],
        "layers_per_block": _count(found, rf"{re.escape(_VAE)}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.18215,
    }


def _infer_text_encoder(found: Tensors, shape: _Shape, path: Path) -> dict[str, Any]:
    second = any(key.startswith(_OPEN_CLIP) for key in found)
    if second:
        rows, width = shape(f"{_OPEN_CLIP}token_embedding.weight")[:2]
        longest = shape(f"{_OPEN_CLIP}positional_embedding")[0]
        inner = shape(f"{_OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight")[0]
        layers = 23  # OpenCLIP-H has 24, of which SD 2 conditions on the last but one
    else:
        rows, width = shape(f"{_CLIP}embeddings.token_embedding.weight")[:2]
        longest = shape(f"{_CLIP}embeddings.position_embedding.weight")[0]
        inner = shape(f"{_CLIP}encoder.layers.0.mlp.fc1.weight")[0]
        layers = _count(found, rf"{re.escape(_CLIP)}encoder\.layers\.(\d+)\.")
    if width != (1024 if second else 768):
        raise _unknown(path, f"the text encoder is {width} wide")
    return {
        "vocab_size": rows,
        "max_position_embeddings": longest,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "gelu" if second else "quick_gelu",
        "projection_dim": 512 if second else 768,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _count(found: Tensors, pattern: str) -> int:
    compiled = re.compile(pattern)
    return len({match[1] for key in found if (match := compiled.match(key))})


def _unknown(path: Path, why: str) -> UserError:
    return UserError(f"{path}: its configs cannot be told ({why}); name a diffusers folder that fits it with --config")
