"""CLIP (arXiv 2103.00020) as extractors of images, and its embeddings of texts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr import parsing
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import resizing
from jaxcxr.evaluation.extractors.extractor import (
    DAMAGED,
    Extractor,
    Preprocess,
    Weights,
    fitted,
    open_weights,
    read_weights,
    require_config,
)
from jaxcxr.evaluation.extractors.texts import embedded, require_ids
from jaxcxr.models.features.clip_vision import (
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from jaxcxr.models.text_config import CLIPTextConfig

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

B_32 = CLIPVisionConfig()
L_14 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    projection_dim=768,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
)
L_14_336 = dataclasses.replace(L_14, image_size=336)


def _short_edge(size: int, image: Image.Image) -> np.ndarray:
    """CLIP's own: the short edge to `size`, then the centre."""
    image = resizing.rgb(image)
    resized = resizing.pil_bicubic(image, resizing.short_edge((image.height, image.width), size))
    return _normalized(resizing.centre_crop(resized, (size, size)))


def _crop_first(size: int, image: Image.Image) -> np.ndarray:
    """That of CMMD (arXiv 2401.09603): the centre square, then to `size`."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = resizing.rgb(image).crop((left, top, left + side, top + side))
    return _normalized(resizing.pil_bicubic(square, (size, size)))


def _normalized(pixels: np.ndarray) -> np.ndarray:
    return (pixels / np.float32(255) - MEAN) / STD


def _extractor(
    config: CLIPVisionConfig, published: str, preprocessings: Mapping[str, Preprocess], normalized: bool = False
) -> Extractor:
    network = functools.partial(_vision, config, normalized)
    return Extractor(
        width=config.projection_dim,
        network=network,
        preprocessings=preprocessings,
        source=f"they are {published} of the Hugging Face Hub",
        read=functools.partial(_read, config, network, published),
        text=text_features,
    )


def _vision(config: CLIPVisionConfig, normalized: bool, rngs: nnx.Rngs) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(config, normalized=normalized, rngs=rngs)


def _read(config: CLIPVisionConfig, network: Any, published: str, file: Path) -> Weights:
    require_config(file, config, _vision_config, published)
    return read_weights(file, network, functools.partial(_of_tower, ("vision_model.", "visual_projection.")))


def _of_tower(prefixes: tuple[str, ...], name: str) -> str | None:
    """The tensor's name, or None for those of the other tower and for the numbers that old files have as positions."""
    both = ("vision_model.", "visual_projection.", "text_model.", "text_projection.", "logit_scale")
    other = name.startswith(both) and not name.startswith(prefixes)
    return None if other or name.endswith("embeddings.position_ids") else name


def _vision_config(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    return _tower_config(config, "vision", path)


def _tower_config(config: dict[str, Any], tower: str, path: Path) -> tuple[dict[str, Any], str]:
    """The description of one tower in a `config.json` of both or of that one, and what to put before its keys."""
    if config.get("model_type") == f"clip_{tower}_model":
        return config, ""
    if config.get("model_type") != "clip":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r:.50}; give a folder of CLIP, 'clip'")
    # Older files have the keys that differ from the defaults a second time, under …_dict, and transformers prefers it.
    parts = [config.get(key) or {} for key in (f"{tower}_config", f"{tower}_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: {tower}_config is not an object; {DAMAGED}")
    # The projection is as wide as the top of the file says, whatever its parts say.
    return parts[0] | parts[1] | {"projection_dim": config.get("projection_dim", 512)}, f"{tower}_config."


def text_features(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """CLIP's embeddings of texts, not normalized: the state at the first end-of-text token, projected.

    Args:
      folder: of transformers' `CLIPModel` or `CLIPTextModelWithProjection`, with its tokenizer's files.
      texts: any; what is longer than the tokenizer's length (77 tokens) is cut.

    Returns:
      (len(texts), projection_dim) float32.

    Raises:
      UserError: the folder lacks a file, or it is damaged or of another network.
    """
    path = folder / "config.json"
    described, _ = _tower_config(parsing.read_json(path, dict[str, Any], remedy=DAMAGED), "text", path)
    # Folders from before transformers 4.27 describe generation too, key by key.
    read = {field.name for field in dataclasses.fields(CLIPTextConfig)} | CLIPTextConfig.only.keys()
    config = CLIPTextConfig.from_dict({key: value for key, value in described.items() if key in read})
    network = _text_network(config)
    tower = functools.partial(_of_tower, ("text_model.", "text_projection."))
    weights = fitted(open_weights(folder), str(folder), network, tower)
    tokenizer = tokens.load(folder)
    ids = tokens.encode(tokenizer, texts, min(tokens.length(tokenizer), config.max_position_embeddings))
    require_ids(ids, config.vocab_size, folder)
    width = config.projection_dim or config.hidden_size
    return embedded(network, lambda model, ids: model.embed(ids), weights, ids, width)


@functools.cache
def _text_network(config: CLIPTextConfig) -> Any:
    return functools.partial(_text, config)


def _text(config: CLIPTextConfig, rngs: nnx.Rngs) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(config, rngs=rngs)


CLIP_B_32 = _extractor(B_32, "openai/clip-vit-base-patch32", {"clip": functools.partial(_short_edge, 224)})
CLIP_L_14 = _extractor(L_14, "openai/clip-vit-large-patch14", {"clip": functools.partial(_short_edge, 224)})
CLIP_L_14_336 = _extractor(
    L_14_336, "openai/clip-vit-large-patch14-336", {"cmmd": functools.partial(_crop_first, 336)}, normalized=True
)
