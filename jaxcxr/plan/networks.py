"""The networks of a run to plan, as shapes: neither weights nor data are needed."""

import contextlib
import functools
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcxr import bases, hub
from jaxcxr.data import tokens
from jaxcxr.data.moments import Card
from jaxcxr.errors import UserError
from jaxcxr.interop import diffusers, orbax, published, single_file, wanted
from jaxcxr.interop.config_files import TEACHER, TEACHER_TOKENIZER
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import networks
from jaxcxr.training.feed import tokenizer_folder
from jaxcxr.training.model import assemble, parts, with_teacher, with_text_encoder

_LEAST = 2 * 256 + 2  # tokens: the bytes, and those ending a word, start and end


def describe(config: ConfigDict) -> StableDiffusion:
    """The pipeline that a run of `config` would train, its parameters as shapes.

    Of `config.model.base` the config files alone are read, or downloaded; a published checkpoint's are known by its
    folder's name.
    Where the data are not here, a tokenizer of the size that `config.data` allows stands in for theirs.

    Raises:
      UserError: the config does not say what the networks are.
    """
    pipeline = assemble(config, _base(config), lambda: _tokenizer(config))
    files = dict(pipeline.files)
    for part in ("tokenizer", TEACHER_TOKENIZER) if TEACHER in pipeline.networks else ("tokenizer",):
        if not any(name.startswith(f"{part}/") for name in files):
            folder = Path(_stand_in(_LEAST).name)
            files |= {f"{part}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    return StableDiffusion(pipeline.networks, files)


def digest(config: ConfigDict) -> str:
    """Of the files that a plan of `config` reads: the bases' without weights, the data's tokenizer, the cache's card.

    Raises:
      UserError: as `describe`, of the bases.
    """
    found, files = hashlib.sha256(), {**_base(config)}
    if config.model.text_encoder and "text_encoder" in networks(config):
        with contextlib.suppress(UserError):  # the data are not here, or raw and name no tokenizer
            folder = tokenizer_folder(config)
            files |= {
                f"data/{name}": (folder / name).read_bytes() for name in tokens.FILES if (folder / name).is_file()
            }
    if config.data.cache:
        files["cache"] = str(Card.read(Path(config.data.cache))).encode()
    for name in sorted(files):
        found.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return found.hexdigest()


def _base(config: ConfigDict) -> dict[str, bytes]:
    """The files of the networks that a run inherits."""
    _, inherited = parts(config)
    base: dict[str, bytes] = {}
    if config.model.base and inherited:
        base = _files(config.model.base)
    if TEACHER in inherited:
        base = with_teacher(base)
    if config.model.text_encoder_base and "text_encoder" in inherited:
        base = with_text_encoder(base, _files(config.model.text_encoder_base))
    return base


def _files(path: str) -> dict[str, bytes]:
    """The files of a checkpoint but its weights."""
    folder = bases.find(path)
    if not folder.exists() and (found := published.files(folder.name)) is not None:
        return found
    folder = hub.find(folder, wanted.of_checkpoint(weights=False))
    if folder.is_file():
        return single_file.read(folder).files
    if folder.is_dir():
        if orbax.is_orbax(folder):
            return diffusers.read_files(folder / orbax.MODEL)
        return diffusers.read_encoder(folder).files if diffusers.is_encoder(folder) else diffusers.read_files(folder)
    raise UserError(
        f"config.model.base={path}: is not here, so its networks are not known; name a folder with their"
        f" config.json, a repository of the hub, or one of the published: {published.NAMES}"
    )


def _tokenizer(config: ConfigDict) -> Path:
    """The data's tokenizer, or one like it."""
    try:
        folder = tokenizer_folder(config)
        if folder.is_dir():
            return folder
    except UserError:  # the data are not here, or raw and name no tokenizer
        pass
    return Path(_stand_in(config.data.tokenizer_vocab).name)


@functools.cache
def _stand_in(size: int) -> tempfile.TemporaryDirectory:
    """A tokenizer of CLIP's length with so many tokens, of words that nobody says."""
    folder = tempfile.TemporaryDirectory(prefix="jaxcxr-tokenizer-")
    letters = np.random.default_rng(0).integers(97, 123, (2 * size, 8), np.uint8)
    words = [bytes(word).decode() for word in letters]
    tokens.train([*words, *words], size, Path(folder.name))
    return folder
