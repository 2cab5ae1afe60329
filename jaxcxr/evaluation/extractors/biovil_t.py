"""BioViL-T (arXiv 2301.04558) as an extractor of radiographs, and its embeddings of texts."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr import parsing
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import resizing
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, fitted, open_weights
from jaxcxr.evaluation.extractors.texts import embedded, require_ids
from jaxcxr.models.features.biovil_t import WIDTH, BioViLTImageModel, CXRBertModel
from jaxcxr.models.text_config import BertConfig

PUBLISHED = "microsoft/BiomedVLP-BioViL-T"
"""The folder of the Hugging Face hub that has both towers; its licence is MIT."""
_FILE = "biovil_t_image_model_proj_size_128.pt"
_SHORT_EDGE, _CROP = 512, 448
_UNCHANGED = "encoder.missing_previous_emb"
# ImageNet's classifier, and what compares an image with an earlier one.
_UNUSED = ("encoder.encoder.fc.", "encoder.vit_pooler.", "classifier.")


def _network(rngs: nnx.Rngs) -> BioViLTImageModel:
    return BioViLTImageModel(rngs=rngs)


def _hi_ml(image: Image.Image) -> np.ndarray:
    """That of hi-ml-multimodal: each image's own range to all bytes, gray, the short edge to 512, the centre of 448.

    So it does not see how light an image is, or how much contrast it has.
    """
    gray = resizing.gray(_full_range(image))
    resized = resizing.pil_bilinear(gray, resizing.short_edge((gray.height, gray.width), _SHORT_EDGE))
    return np.repeat(resizing.centre_crop(resized, (_CROP, _CROP)) / np.float32(255), 3, axis=-1)


def _full_range(image: Image.Image) -> Image.Image:
    """The darkest value of any channel becomes 0, the lightest 255; others are rounded down."""
    pixels = np.asarray(image, np.float64)
    lowest, highest = pixels.min(), pixels.max()
    if lowest == highest:
        return Image.fromarray(np.zeros(pixels.shape, np.uint8))
    return Image.fromarray(((pixels - lowest) / (highest - lowest) * 255).astype(np.uint8))


def _read(file: Path) -> Weights:
    file = file / _FILE if file.is_dir() else file
    tensors = dict(open_weights(file))
    unchanged = tensors.pop(_UNCHANGED, None)
    if unchanged is None or unchanged.ndim != 4:
        raise UserError(f"{file}: is of another network: has no {_UNCHANGED}; give {_FILE} of {PUBLISHED}")
    tensors[f"{_UNCHANGED}.bias"] = unchanged.map(lambda array: array.reshape(-1))
    return fitted(tensors, str(file), _network, lambda name: None if name.startswith(_UNUSED) else name)


def text_features(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """CXR-BERT's embeddings of texts in the space of `BIOVIL_T`, of length one.

    As in hi-ml-multimodal, the signs `.`, `!` and `?` at the end of a text are left out.

    Args:
      folder: of transformers' CXRBertModel, with its tokenizer's files.
      texts: any; what is longer than the tokenizer's length, or 512 tokens, is cut.

    Returns:
      (len(texts), 128) float32.

    Raises:
      UserError: the folder lacks a file, or it is damaged or of another network.
    """
    config = _text_config(folder / "config.json")
    network = _text_network(config)
    weights = fitted(open_weights(folder), str(folder), network, _of_text)
    tokenizer = tokens.load(folder)
    ids = tokens.encode(
        tokenizer, [text.rstrip("!?.") for text in texts], min(tokens.length(tokenizer), config.longest)
    )
    require_ids(ids, config.vocab_size, folder)
    # Padding is hidden from attention, so columns of padding alone change nothing.
    ids = ids[:, : max(1, int((ids != config.pad_token_id).sum(axis=1).max(initial=0)))]
    return embedded(network, lambda model, ids: model(ids), weights, ids, WIDTH)


def _text_config(path: Path) -> BertConfig:
    """What `config.json` says of the encoder."""
    described: dict[str, Any] = parsing.read_json(path, dict[str, Any], remedy="the file may be damaged")
    found = described.get("model_type"), described.get("projection_size", WIDTH)
    if found != ("cxr-bert", WIDTH):
        raise UserError(f"{path}: is of {found[0]!r:.50} with {found[1]!r:.50} outputs; give {PUBLISHED}")
    read = {field.name for field in dataclasses.fields(BertConfig)} | BertConfig.only.keys()
    return BertConfig.from_dict({key: described[key] for key in read & described.keys()} | {"model_type": "bert"})


@functools.cache
def _text_network(config: BertConfig) -> Any:
    return lambda rngs: CXRBertModel(config, rngs=rngs)


def _of_text(name: str) -> str | None:
    """The tensor's name; None for the head that guesses hidden words, and for positions that old files have."""
    unused = name.startswith(("cls.", "bert.pooler.")) or name.endswith("embeddings.position_ids")
    return None if unused else name


BIOVIL_T = Extractor(
    width=WIDTH,
    network=_network,
    preprocessings={"hi-ml": _hi_ml},
    source=f"they are {PUBLISHED} of the Hugging Face Hub, with {_FILE}",
    read=_read,
    besides=(_FILE,),
    text=lambda file, texts: text_features(file if file.is_dir() else file.parent, texts),
)
