"""DINOv2 (arXiv 2304.07193), and RAD-DINO (arXiv 2401.10815) trained so on chest X-rays, as extractors."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import resizing
from jaxcxr.evaluation.extractors.extractor import (
    Extractor,
    Preprocess,
    Weights,
    fitted,
    open_weights,
    require_config,
)
from jaxcxr.interop.tensors import Tensor, Tensors
from jaxcxr.models.features import IMAGENET_MEAN, IMAGENET_STD
from jaxcxr.models.features.dinov2 import Dinov2Config, Dinov2Model

_SIZE = 518
_B_14 = Dinov2Config(image_size=_SIZE)
_L_14 = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=_SIZE)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_RADIOGRAPHS = (np.float32(0.5307), np.float32(0.2583))
# Meta's names, in the order in which they are replaced, and those of transformers.
_META = {
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
_META_BLOCK = {
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
# What transformers calls the parts of attention in memory since version 5.
_RENAMED = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}


def _dgm_eval(image: Image.Image) -> np.ndarray:
    """That of dgm-eval (arXiv 2306.04675): squashed to 224²."""
    return _normalized(resizing.pil_bicubic(resizing.rgb(image), (224, 224)), _IMAGENET)


def _dgm_eval_clean(image: Image.Image) -> np.ndarray:
    """The same with its option `clean_resize`: not rounded to bytes."""
    return _normalized(resizing.pil_float_bicubic(resizing.rgb(image), (224, 224)), _IMAGENET)


def _rad_dino(image: Image.Image) -> np.ndarray:
    """RAD-DINO's own: the short edge to 518, then the centre."""
    image = resizing.rgb(image)
    resized = resizing.pil_bicubic(image, resizing.short_edge((image.height, image.width), _SIZE))
    # transformers rounds half a pixel down, where torchvision rounds it to the even neighbour.
    top, left = ((length - _SIZE) // 2 for length in resized.shape[:2])
    return _normalized(resized[top : top + _SIZE, left : left + _SIZE], _RADIOGRAPHS)


def _rad_dino_299(image: Image.Image) -> np.ndarray:
    """That of CheXGenBench's published numbers: squashed to 299² as for Inception, then RAD-DINO's own."""
    return _rad_dino(resizing.rgb(image).resize((299, 299), Image.Resampling.BILINEAR))


def _normalized(pixels: np.ndarray, statistics: tuple[Any, Any]) -> np.ndarray:
    mean, std = statistics
    return (pixels / np.float32(255) - mean) / std


def _extractor(
    config: Dinov2Config, published: str, preprocessings: Mapping[str, Preprocess], offset: float = 0.0
) -> Extractor:
    network = functools.partial(_network, config, offset)
    return Extractor(
        width=config.hidden_size,
        network=network,
        preprocessings=preprocessings,
        source=f"they are {published} of the Hugging Face Hub",
        read=functools.partial(_read, config, network, published),
    )


def _network(config: Dinov2Config, offset: float, rngs: nnx.Rngs) -> Dinov2Model:
    return Dinov2Model(config, offset=offset, rngs=rngs)


def _read(config: Dinov2Config, network: Any, published: str, file: Path) -> Weights:
    require_config(file, config, _whole_config, published)
    tensors = open_weights(file)
    return fitted(_of_transformers(tensors) if "pos_embed" in tensors else tensors, str(file), network, _named)


def _whole_config(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    if config.get("model_type") != "dinov2":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r:.50}; give a folder of 'dinov2'")
    return config, ""


def _named(name: str) -> str | None:
    """A tensor's name in transformers' files; None for what stands for hidden patches in training."""
    for new, old in _RENAMED.items():
        name = name.replace(f".{new}", f".{old}")
    return None if name.endswith("mask_token") else name


def _of_transformers(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of Meta's own file under the names that transformers' files have."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        prefix, rest = (f"encoder.layer.{block[1]}.", block[2]) if block else ("", name)
        if block and rest.startswith("attn.qkv."):
            leaf = rest.removeprefix("attn.qkv.")
            for index, part in enumerate(("query", "key", "value")):
                renamed[f"{prefix}attention.attention.{part}.{leaf}"] = _third(tensor, index)
            continue
        for meta, own in (_META_BLOCK if block else _META).items():
            if rest.startswith(meta):
                rest = own + rest.removeprefix(meta)
                break
        renamed[prefix + rest] = tensor
    return renamed


def _third(tensor: Tensor, index: int) -> Tensor:
    third = tensor.shape[0] // 3 if tensor.ndim else 0
    return tensor.map(lambda array: array[index * third : (index + 1) * third] if third else array)


_DGM_EVAL: dict[str, Preprocess] = {"dgm-eval": _dgm_eval, "dgm-eval-clean": _dgm_eval_clean}
# dgm-eval runs Meta's network, which spaces the positions for 224² by the offset.
DINOV2_B = _extractor(_B_14, "facebook/dinov2-base", _DGM_EVAL, offset=0.1)
DINOV2_L = _extractor(_L_14, "facebook/dinov2-large", _DGM_EVAL, offset=0.1)
RAD_DINO = _extractor(_B_14, "microsoft/rad-dino", {"rad-dino": _rad_dino, "rad-dino-299": _rad_dino_299})
