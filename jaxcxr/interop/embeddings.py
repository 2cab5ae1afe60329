"""Textual-inversion embeddings: files of vectors for new words, and text encoders that have them.

| layout | file | tensors |
|---|---|---|
| diffusers | `.safetensors`, `.bin` | `{word: (vectors, width)}` or `(width,)` |
| AUTOMATIC1111 | `.pt` | `{string_to_param: {"*": …}, string_to_token, name, step, …}`; the word is the file's name |
| kohya, AUTOMATIC1111 | `.safetensors` | `{emb_params: …}`; the word is the file's name |
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.data import added_tokens, tokens
from jaxcxr.errors import UserError
from jaxcxr.files import new_file, new_folder
from jaxcxr.interop import torch_save
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.config_files import network_config_of, parse_object
from jaxcxr.interop.pickled import open_pickled
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.interop.tensors import Tensor, is_floating, open_safetensors, write_safetensors
from jaxcxr.parsing import to_json

TABLES = (
    "text_encoder.text_model.embeddings.token_embedding.embedding",
    "text_encoder.embeddings.word_embeddings.embedding",
)
"""The vocabulary's vectors by row, in CLIP's text encoder and in BERT's."""

SUFFIXES = (".safetensors", ".pt", ".bin")
_UNNAMED = ("emb_params", "*")  # for a word, where the file's name is it
CONFIG = "text_encoder/config.json"
_STAR = 265  # the id of `*` in CLIP's vocabulary, which AUTOMATIC1111 trains in place of


def table_of(parameters: Iterable[str], where: str) -> str:
    """The name of the vocabulary's table among those of parameters; UserError where there is none, with `where`."""
    found = [name for name in parameters if name in TABLES]
    if not found:
        raise _no_encoder(where)
    return found[0]


def tokenizer_of(files: Mapping[str, bytes], where: str) -> Any:
    """The tokenizer among a pipeline's files.

    Raises:
      UserError: there is none, or no text encoder, with `where`.
    """
    if CONFIG not in files:
        raise _no_encoder(where)
    return StableDiffusion({}, dict(files)).tokenizer


def with_tokens(files: Mapping[str, bytes], vectors: Mapping[str, int]) -> dict[str, bytes]:
    """The files of a pipeline whose tokenizer and text encoder have further words, each of so many vectors.

    The table has their rows at its end. Rows that are no token's, which a few tables have there, are left out.

    Raises:
      UserError: there is no text encoder or tokenizer, or a word cannot be added to it.
    """
    tokenizer = tokenizer_of(files, "an embedding")
    for word, count in vectors.items():
        added_tokens.check_new(tokenizer, word, count, tokens.length(tokenizer))
    names = [name for word, count in vectors.items() for name in added_tokens.names(word, count)]
    first = added_tokens.first_new_id(tokenizer)
    rows = first + len(names)
    files = with_rows(added_tokens.with_added(files, names, first), rows)
    found = StableDiffusion({}, files).tokenizer
    if [found.convert_tokens_to_ids(name) for name in names] != list(range(first, rows)):
        raise UserError(f"tokenizer: does not take further tokens from the id {first} on; its files may be damaged")
    for word in vectors:
        _check_read(found, word, added_tokens.added(found)[word])
    return files


def _check_read(tokenizer: Any, word: str, ids: list[int]) -> None:
    """Raises UserError where a prompt with a word does not become all of its ids; with capitals it may be but one."""
    if tokens.encode(tokenizer, [word], tokens.length(tokenizer))[0, 1 : len(ids) + 1].tolist() != ids:
        read = " ".join(tokenizer.tokenize(word))
        raise UserError(f"token {word!r}: the tokenizer reads it as {read!r:.200}; choose a word of small letters")


def with_rows(files: Mapping[str, bytes], rows: int) -> dict[str, bytes]:
    """The files of a pipeline whose text encoder has so many rows in its table."""
    return {**files, CONFIG: to_json(parse_object(CONFIG, files[CONFIG]) | {"vocab_size": rows})}


def rows_of(files: Mapping[str, bytes]) -> int:
    """How many rows the table of a pipeline's text encoder has."""
    return network_config_of("text_encoder", files[CONFIG]).vocab_size


def with_embeddings(checkpoint: Checkpoint, vectors: Mapping[str, np.ndarray]) -> Checkpoint:
    """The checkpoint whose text encoder has further words; their vectors (k, width) get its table's dtype.

    Raises:
      UserError: there is no text encoder or tokenizer, a word is there already, or has another width.
    """
    name = table_of(checkpoint.tensors, "an embedding")
    table = checkpoint.tensors[name]
    for word, rows in vectors.items():
        if rows.ndim != 2 or rows.shape[1] != table.shape[1]:
            raise UserError(
                f"embedding of {word!r:.120}: has vectors of {rows.shape[-1]}, the text encoder's have"
                f" {table.shape[1]}; it was made for another one"
            )
    files = with_tokens(checkpoint.files, {word: len(rows) for word, rows in vectors.items()})
    added = np.concatenate([rows.astype(table.dtype) for rows in vectors.values()])
    count = rows_of(files)

    def read() -> np.ndarray:
        return np.concatenate([table.read()[: count - len(added)], added])

    return Checkpoint(files, checkpoint.tensors | {name: Tensor((count, table.shape[1]), table.dtype, read)})


def words_of(files: Mapping[str, bytes]) -> list[str]:
    """The words that were added to a pipeline's tokenizer; none where it has no tokenizer."""
    has = CONFIG in files and any(name.startswith("tokenizer/") for name in files)
    return list(added_tokens.added(tokenizer_of(files, "words"))) if has else []


def of(checkpoint: Checkpoint, words: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The vectors of the words that were added to a checkpoint's tokenizer, (k, width) each; of all if `words` is None.

    Raises:
      UserError: there is no text encoder or tokenizer.
    """
    table = checkpoint.tensors[table_of(checkpoint.tensors, "an embedding")].read()
    found = added_tokens.added(StableDiffusion({}, checkpoint.files).tokenizer)
    return {word: table[ids] for word, ids in found.items() if words is None or word in words}


def is_embedding(path: Path) -> bool:
    """Whether `path` is a file that `read` reads."""
    try:
        return path.is_file() and path.suffix in SUFFIXES and bool(_open(path))
    except UserError:
        return False


def read(path: Path, word: str = "") -> dict[str, np.ndarray]:
    """The vectors of a file by word, float32 (k, width) each.

    Args:
      path: of any of the layouts; pickled ones are read without running anything in them.
      word: in place of the file's own, which has to be of one word then.

    Raises:
      UserError: it cannot be read, or is no embedding of one text encoder.
    """
    found = _open(path)
    if word and len(found) > 1:
        raise UserError(f"{path}: is of several words, {', '.join(found)}; leave their names as they are")
    vectors = {}
    for name, tensor in found.items():
        rows = tensor.require_finite(f"{path}: {name}").read().astype(np.float32)
        vectors[word or (path.stem if name in _UNNAMED else name)] = rows.reshape(-1, rows.shape[-1])
    return vectors


def _open(path: Path) -> dict[str, Tensor]:
    found = open_safetensors(path) if path.suffix == ".safetensors" else open_pickled(path)
    if found.keys() & {"clip_l", "clip_g"}:
        raise UserError(f"{path}: is an embedding of Stable Diffusion XL, which has two text encoders and is not read")
    dotted = len(found) > 1 and any("." in name for name in found)  # as layers have names, and words hardly
    for name, tensor in found.items():
        fits = tensor.ndim in (1, 2) and 0 not in tensor.shape and is_floating(tensor.dtype)
        if dotted or not fits or re.search(r"^lora_|\.(weight|bias|kernel|scale|alpha)$", name):
            raise UserError(
                f"{path}: is no textual-inversion embedding: it has {name!r:.120} of the shape {tensor.shape}"
            )
    if not found:
        raise UserError(f"{path}: is no textual-inversion embedding: it has no tensor")
    return found


def write(file: Path, word: str, vectors: np.ndarray, *, step: int | None = None) -> None:
    """Writes the vectors (k, width) of a word to a new file, by its suffix.

    `.safetensors` is diffusers' layout, which AUTOMATIC1111 reads too; `.pt` is the latter's own, with the word for its
    `name` and how far it was trained as `step`.

    Raises:
      UserError: another suffix, or the file exists or cannot be written.
    """
    if file.suffix not in (".safetensors", ".pt"):
        raise UserError(f"{file}: an embedding's name ends in .safetensors or .pt")
    with new_file(file) as partial:
        if file.suffix == ".safetensors":
            write_safetensors(partial, {word: Tensor.of(vectors)})
        else:
            content = {"string_to_token": {"*": _STAR}, "string_to_param": {"*": vectors}, "name": word, "step": step}
            torch_save.write(partial, content | {"sd_checkpoint": None, "sd_checkpoint_name": None})


def write_all(path: Path, vectors: Mapping[str, np.ndarray], *, step: int | None = None) -> list[Path]:
    """Writes words: one to the file that `path` names, or each to a .safetensors file in the new folder `path`.

    Returns:
      The files.

    Raises:
      UserError: as `write`, or several words are to go into one file.
    """
    if path.suffix in SUFFIXES:
        if len(vectors) != 1:
            raise UserError(f"{path}: there are {len(vectors)} words, {', '.join(vectors)}; name a folder for them")
        ((word, rows),) = vectors.items()
        write(path, word, rows, step=step)
        return [path]
    names: dict[str, str] = {}  # by word: a file's name is the word that AUTOMATIC1111 knows
    for word in vectors:
        plain = re.sub(r"[^\w.-]+", "", word) or "token"
        names[word] = plain if plain not in names.values() else f"{plain}-{len(names)}"
    with new_folder(path) as folder:
        for word, rows in vectors.items():
            write(folder / f"{names[word]}.safetensors", word, rows)
    return [path / f"{name}.safetensors" for name in names.values()]


def _no_encoder(where: str) -> UserError:
    return UserError(f"{where}: wants a text encoder, and there is none here")
