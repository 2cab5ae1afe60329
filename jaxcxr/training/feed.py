"""What a run reads: this process's part of the batches of a split."""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxcxr import hub
from jaxcxr.adaptation import textual_inversion
from jaxcxr.data import tokens, weights
from jaxcxr.data.classes import Classes
from jaxcxr.data.conditions import Conditions
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.mixture import Joined, Part, by_rarest_label, weighted
from jaxcxr.data.moments import Card, Moments, Origin
from jaxcxr.data.raw import RawSplit
from jaxcxr.data.records import EmptySplit
from jaxcxr.data.settings import Settings
from jaxcxr.data.source import is_source
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import method
from jaxcxr.workdir import Prepared

_LOOKED_AT = 10_000  # prompts


def open_batches(
    config: ConfigDict,
    split: str,
    tokenizer: Any,
    *,
    teacher: Any = None,
    classes: Classes | None = None,
    rows: np.ndarray | None = None,
    shuffle: bool = True,
) -> Batches:
    """Opens the batches of a split of `config.data`, or some `rows` of each: of one folder, or of a mixture of several.

    Of a mixture, folders without a split `validate` or `test` are left out of it. `teacher` is the tokenizer of the
    text encoder that the run's own learns from, where its method has one; `classes` are those of a classifier.

    Raises:
      EmptySplit: nothing is in this split, or for `train` nothing of one folder.
      UserError: a folder is neither prepared nor a source, or of another size.
    """
    opened: list[tuple[Folder, Sequence[Any]]] = []
    for folder in folders(config):
        try:
            opened.append((folder, _open(folder, split, config, tokenizer)))
        except EmptySplit as error:
            if split == "train":
                raise
            empty = error
    if not opened:
        raise empty
    source = Joined([records for _, records in opened])
    parts: list[Part] = []
    for (folder, _), start, end in zip(opened, source.starts, source.starts[1:], strict=False):
        if config.data.rebalance and split == "train":
            own = by_rarest_label(Path(folder.path), split, config.data.rebalance)
        else:
            own = [Part(range(end - start), 1.0)]
        parts += weighted(own, folder.weight, start)
    return Batches(
        source,
        parts=parts,
        tokenizer=tokenizer,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=rows,
        shuffle=shuffle,
        weights=weights.read(config.data.weights) if config.data.weights and split == "train" else None,
        reads=method(config).reads,
        teacher=teacher,
        classes=classes,
        conditions=_conditions(config),
    )


def _conditions(config: ConfigDict) -> Conditions | None:
    """The condition images of a run whose method reads them; UserError where there are none."""
    if "condition" not in method(config).reads:
        return None
    if not config.data.conditions:
        raise UserError(
            f"config.data.conditions: is empty, and config.method={config.method!r} learns from condition images; give"
            " a folder with a picture ID.png a record"
        )
    return Conditions(config.data.conditions, config.data.size)


def with_size(config: ConfigDict) -> ConfigDict:
    """The config with the side of its prepared images where `data.size` is 0.

    Raises:
      UserError: it is 0, and `data.path` is not a prepared folder.
    """
    if config.data.size != 0:
        return config
    path = Path(config.data.path)
    if _is_raw(path):
        raise UserError(f"config.data.size=0: {path} is not prepared; set it to the images' height in pixels")
    config = ConfigDict(config.to_dict())
    config.data.size = int(Summary.require(path).settings["size"])
    return config.lock()


class Folder(NamedTuple):
    """One of the folders that a run learns from."""

    path: str
    weight: float
    cache: str


def folders(config: ConfigDict) -> list[Folder]:
    """What `data.path`, `data.cache` and `data.mixture` name.

    Raises:
      UserError: an entry of `data.mixture` is not (folder, weight) or (folder, weight, cache).
    """
    data = config.data
    found = [Folder(data.path, 1.0, data.cache)]
    for entry in data.mixture:
        path, weight, cache = (*entry, "", "", "")[:3] if isinstance(entry, list | tuple) else (entry, "", "")
        texts = isinstance(path, str) and isinstance(cache, str)
        if not (texts and isinstance(weight, int | float) and 0 < weight < math.inf):
            raise UserError(f"config.data.mixture has {entry!r}: give (folder, weight) or (folder, weight, cache)")
        if bool(cache) != bool(data.cache):
            raise UserError(f"config.data.mixture: {path} needs a cache if config.data.path has one, and only then")
        found.append(Folder(path, float(weight), cache))
    return found


def _is_raw(path: Path) -> bool:
    """Whether a folder holds raw data, not prepared."""
    return Summary.read(path) is None and is_source(path)


def _open(folder: Folder, split: str, config: ConfigDict, tokenizer: Any) -> Sequence[Any]:
    if folder.cache:
        return Moments(folder.cache, split, tokens.digest(tokenizer))
    path = Path(folder.path)
    if _is_raw(path):
        print(f"{path}: is read as it is, slowly; jaxcxr prepare makes it fast", file=sys.stderr)
        return RawSplit(path, Settings.from_config(config.data), split)
    return open_split(path, split, config.data.size, config.data.channels)


def with_steps(config: ConfigDict) -> ConfigDict:
    """The config, with as many steps as its `epochs` take, where it gives those: the images of all folders are one.

    Raises:
      UserError: the images of raw data, which nobody has counted, are asked for so many times.
    """
    if not config.epochs:
        return config
    images = 0
    for folder in folders(config):
        if _is_raw(Path(folder.path)):
            raise UserError(f"config.epochs={config.epochs}: wants prepared data to count; set config.steps")
        images += Summary.require(Path(folder.path)).splits.get("train", 0)
    config = ConfigDict(config.to_dict())
    config.steps = max(1, math.ceil(config.epochs * images / config.batch_size))
    return config.lock()


def some_images(config: ConfigDict, tokenizer: Any, count: int) -> np.ndarray:
    """The first `count` training images of `config.data.path` in a run's order, uint8 (count, S, S, 1)."""
    source = _open(Folder(config.data.path, 1.0, ""), "train", config, tokenizer)
    return Batches(source, tokenizer=tokenizer, seed=config.seed, batch_size=count).batch(0)["image"]


def tokenizer_folder(config: ConfigDict) -> Path:
    """Where the data's tokenizer lies: in the prepared folder, or where `data.tokenizer` says for raw data.

    Raises:
      UserError: `data.path` is neither, or raw and `data.tokenizer` is empty.
    """
    path = Path(config.data.path)
    if _is_raw(path):
        if not config.data.tokenizer:
            raise UserError(f"{path}: is not prepared and has no tokenizer: give config.data.tokenizer its folder")
        return hub.find(config.data.tokenizer, tokens.wanted)
    Summary.require(path)
    return path / "tokenizer"


def check_conditions(batches: Batches, split: str) -> None:
    """Sees to it that the records of a split have condition images where the method reads them.

    Raises:
      UserError: one has none, of the first ten thousand; the others are found out when they are read.
    """
    if (place := batches.without_condition(_LOOKED_AT)) is not None:
        raise UserError(
            f"config.data.conditions: has no picture for the record in place {place} of {split}, from 0; add ID.png for"
            " each record, or leave the others out of the data"
        )


def check_words(config: ConfigDict, batches: Batches, data: Sequence[Prepared]) -> None:
    """Sees to it that the words of `config.textual_inversion` are in the prompts: those that are in none learn nothing.

    Args:
      batches: of the training split.
      data: what its folders were prepared with.

    Raises:
      UserError: one is in no template of theirs, and in none of the first 10,000 prompts.
    """
    chosen = textual_inversion.settings(config)
    templates = [template for folder in data for template in folder.settings.get("prompts", ())]
    missing = {word.text for word in chosen.words} if chosen else set()
    for text in itertools.chain(templates, itertools.islice(batches.texts(), _LOOKED_AT)):
        missing = {word for word in missing if word not in text}
        if not missing:
            return
    if missing:
        raise UserError(
            f"config.textual_inversion.tokens: {sorted(missing)[0]!r} is in no prompt of {config.data.path}; prepare"
            " it with config.data.prompts that have it, such as ('{view} chest radiograph with <effusion>.',)"
        )


def check_cache(config: ConfigDict, pipeline: StableDiffusion, learns: set[str], parameters: Mapping[str, Any]) -> None:
    """Sees to it that the caches of `config.data` were made of this run's data and autoencoder.

    Args:
      learns: the names of the parameters that learn.
      parameters: all of the run's or the autoencoder's, by full name.

    Raises:
      UserError: it was not, two of them are not alike, or the autoencoder learns.
    """
    if any(name.startswith("vae.") for name in learns):
        raise UserError("config.data.cache: holds latents of an autoencoder that is not learning; leave it empty here")
    named, first = folders(config), None
    for folder in named:
        card = Card.read(Path(folder.cache))
        assert card is not None
        if card.origin.text and any(name.startswith("text_encoder.") for name in learns):
            raise UserError(f"{folder.cache}: holds states of a text encoder, which is learning here; cache without it")
        origin = Origin.of(folder.path, pipeline.files, parameters, pipeline.vae.dtype, text=card.origin.text)
        card.origin.check(origin, Path(folder.cache))
        if (size := Summary.require(Path(folder.path)).settings["size"]) != config.data.size:
            raise UserError(f"{folder.cache}: is of images of {size} pixels, config.data.size is {config.data.size}")
        first = first or card
        for what in ("dtype", "shape", "states_shape"):
            if getattr(card, what) != getattr(first, what):
                raise UserError(f"{folder.cache}: differs in {what} from {named[0].cache}; cache both alike")
