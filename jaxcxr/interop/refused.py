"""What is no checkpoint of Stable Diffusion 1 or 2: other families' pipelines, and what is added to a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError
from jaxcxr.interop.tensors import Tensors

PIPELINES = frozenset(
    {
        "CycleDiffusionPipeline",
        "SemanticStableDiffusionPipeline",
        "StableDiffusionAttendAndExcitePipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPanoramaPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionPipelineSafe",
        "StableDiffusionSAGPipeline",
    }
)
"""The pipelines of diffusers that are made of one U-Net, one autoencoder and one text encoder with its tokenizer."""

_FAMILIES = (
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("StableDiffusionControlNet", "ControlNet"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("StableCascade", "Stable Cascade"),
    ("StableUnCLIP", "Stable unCLIP"),
    ("LatentConsistencyModel", "latent consistency model (LCM)"),
    ("Flux", "Flux"),
    ("Kandinsky", "Kandinsky"),
    ("PixArt", "PixArt"),
    ("Sana", "Sana"),
)
FOLDERS = (
    *("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "transformer", "transformer_2"),
    *("prior", "decoder", "movq", "vqvae", "image_encoder", "image_normalizer", "image_noising_scheduler"),
    *("t2i_adapter", "low_res_scheduler", "depth_estimator", "text_proj", "connectors"),
)
"""Folders that those pipelines do not have."""

_MERGE = "merge it into its base with jaxcxr convert BASE DST --adapter THIS --to diffusers, or sample with --adapter"
_BASE = "give the checkpoint that it belongs to"
_LORA = re.compile(
    r"lora_(A|B|down|up)\b|\blora_(unet|te\d?)_|lora\.(down|up)\b|lora_linear_layer|lora_magnitude_vector|dora_scale"
    r"|\.(hada|lokr)_w"
)
_LORA_PARTS = (
    ("a U-Net", re.compile(r"^unet\.|^lora_unet_|down_blocks|up_blocks|mid_block")),
    ("a text encoder", re.compile(r"^text_encoder|^lora_te|self_attn")),
)
_ADDED = (
    (r"controlnet_(cond_embedding|down_blocks|mid_block)\.", "a ControlNet"),
    (r"(adapter\.)?body\.\d+\.|adapter\.(conv_in|unshuffle)\.", "a T2I adapter"),
    (r"ip_adapter\.", "an IP adapter"),
    (r"emb_params$", "a textual-inversion embedding"),
)
_NETWORK_FOLDERS = {
    "ControlNetModel": "a ControlNet",
    "T2IAdapter": "a T2I adapter",
    "MultiAdapter": "a T2I adapter",
    "UNet2DConditionModel": "a U-Net alone",
    "AutoencoderKL": "an autoencoder alone",
}
_ADDED_FILES = (
    ("pytorch_lora_weights.safetensors", "a LoRA", _MERGE),
    ("pytorch_lora_weights.bin", "a LoRA", _MERGE),
    ("adapter_config.json", "a LoRA", _MERGE),
    ("learned_embeds.safetensors", "a textual-inversion embedding", _BASE),
    ("learned_embeds.bin", "a textual-inversion embedding", _BASE),
)


def check_pipeline(path: Path, index: Mapping[str, Any]) -> None:
    """Raises UserError if the folder `path`, of this `model_index.json`, is another family's pipeline, by name."""
    name = str(index.get("_class_name", "StableDiffusionPipeline")).removeprefix("Flax")
    if name not in PIPELINES:
        family = next((family for start, family in _FAMILIES if name.startswith(start)), "another")
        raise UserError(
            f"{path / 'model_index.json'}: _class_name {name!r:.100} is a pipeline of {family} family; only Stable"
            " Diffusion 1 and 2 are read"
        )
    named = [part for part in FOLDERS if isinstance(index.get(part), list) and index[part][:1] not in ([], [None])]
    if found := named or [part for part in FOLDERS if (path / part).is_dir()]:
        raise UserError(f"{path / found[0]}: is no part of Stable Diffusion 1 or 2, whose pipelines alone are read")


def check_tensors(path: Path, found: Tensors) -> None:
    """Raises UserError if the tensors of the file `path` are what is added to a checkpoint: a LoRA, an embedding, …"""
    if any(_LORA.search(key) for key in found):
        parts = [part for part, pattern in _LORA_PARTS if any(pattern.search(key) for key in found)]
        raise _not_whole(path, f"a LoRA for {' and '.join(parts) or 'some network'}", _MERGE)
    for pattern, name in _ADDED:
        if any(re.match(pattern, key) for key in found):
            raise _not_whole(path, name, _BASE)
    # diffusers' embeddings are the token's name and its vectors; those of two text encoders are called clip_l, clip_g
    if 0 < len(found) <= 2 and all("." not in key and tensor.ndim <= 2 for key, tensor in found.items()):
        raise _not_whole(path, "a textual-inversion embedding", _BASE)


def check_network(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if the `config.json` in the folder `path` is of a network of diffusers, by name."""
    if "_class_name" in config:
        name = config["_class_name"]
        what = _NETWORK_FOLDERS.get(name) if isinstance(name, str) else None
        raise _not_whole(path, what or f"one network, of class {name!r:.100}", _BASE)


def check_files(path: Path) -> None:
    """Raises UserError if the folder `path` holds what is added to a checkpoint, with its name."""
    for file, what, remedy in _ADDED_FILES:
        if (path / file).is_file():
            raise _not_whole(path, what, remedy)


def _not_whole(path: Path, what: str, remedy: str) -> UserError:
    return UserError(f"{path}: is {what}, not a whole checkpoint; {remedy}")
