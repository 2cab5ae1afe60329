"""Textual inversion: new words of the text encoder's, whose vectors alone learn (Gal et al. 2022, arXiv 2208.01618).

Of radiographs see de Wilde et al. 2023, "Medical diffusion on a budget" (arXiv 2303.13430).

The vocabulary's table has a row more for each vector, its last ones. What is frozen has them as they were at first, so
that a run's networks have one shape; those that learn are put in their place. No update reaches another row.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxcxr.data import tokens as tokenizers
from jaxcxr.errors import UserError
from jaxcxr.interop import embeddings
from jaxcxr.parsing import convert

_LEAF = ".vectors"
_FILE = "adaptation.json: textual_inversion"


class Word(NamedTuple):
    """A word that is learnt: its text, its number of vectors, and the words that they are at first, if any."""

    text: str
    vectors: int = 1
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.textual_inversion`.

    Attributes:
      tokens: (text, vectors) or (text, vectors, words) for each; none: off.
      initial: of tokens without words: the vocabulary's mean, or random vectors of its mean and deviation.
      max_norm: of a vector; 0: any.
    """

    tokens: tuple[Any, ...] = ()
    initial: Literal["mean", "random"] = "mean"
    max_norm: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def words(self) -> list[Word]:
        """What is learnt; UserErrors as `of`."""
        return [_word(entry) for entry in self.tokens]


@dataclasses.dataclass(frozen=True)
class TextualInversion:
    """New rows of a table.

    Attributes:
      chosen: how many, and how.
      table: the name of the vocabulary's table.
    """

    chosen: Settings
    table: str

    @property
    def changes(self) -> frozenset[str]:
        """The table."""
        return frozenset({self.table})

    @property
    def _count(self) -> int:
        return sum(word.vectors for word in self.chosen.words)

    def start(self, parameters: Mapping[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        """The table's last rows, as `with_rows` made them."""
        learnt = {_learnt(self.table): jnp.asarray(parameters[self.table][-self._count :], jnp.float32)}
        return learnt | self.project(learnt)

    def project(self, learnt: Mapping[str, Any]) -> dict[str, Any]:
        """The rows within `max_norm`.

        That is done after each update. Were they bounded where they are used, no gradient would point inwards from
        beyond the bound, and a vector that is there would stay.
        """
        name, most = _learnt(self.table), self.chosen.max_norm
        if not most:
            return {}
        norms = jnp.linalg.norm(learnt[name], axis=1, keepdims=True)
        return {name: learnt[name] * jnp.minimum(1, most / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))}

    def merge(self, name: str, learnt: Mapping[str, Any], parameters: Mapping[str, Any]) -> jax.Array:
        """The table with the learnt rows, float32."""
        rows, table = learnt[_learnt(name)], jnp.asarray(parameters[name], jnp.float32)
        return jnp.concatenate([table[: len(table) - len(rows)], rows])

    def settings(self) -> dict[str, Any]:
        """The section of the config."""
        return dataclasses.asdict(self.chosen)


def of(config: Any, parameters: Mapping[str, Any]) -> TextualInversion | None:
    """What `config.textual_inversion` adds, None where it has no tokens.

    Raises:
      UserError: a setting is out of its range, or no text encoder is among the networks.
    """
    chosen = settings(config)
    if chosen is None:
        return None
    if chosen.max_norm and config.optimizer.name == "schedule_free":
        raise UserError(
            "config.textual_inversion.max_norm: schedule_free keeps vectors of its own, which would not be bounded;"
            " set it to 0 or choose another config.optimizer.name"
        )
    return TextualInversion(chosen, embeddings.table_of(parameters, "config.textual_inversion"))


def settings(config: Any) -> Settings | None:
    """The checked section of a config, None where it has no tokens."""
    if not config.textual_inversion.tokens:
        return None
    return _checked(config.textual_inversion.to_dict(), "config.textual_inversion")


def settings_of(values: Any) -> Settings:
    """A file's settings.

    Raises:
      UserError: as `of`.
    """
    return _checked(values, _FILE)


def read(values: Any, parameters: Mapping[str, Any]) -> TextualInversion:
    """What a file's settings tell.

    Raises:
      UserError: as `of`.
    """
    part = TextualInversion(settings_of(values), embeddings.table_of(parameters, _FILE))
    if part._count > parameters[part.table].shape[0]:
        raise UserError(f"{_FILE}: has {part._count} vectors, more than {part.table}; copy the folder again")
    return part


def owns(name: str) -> bool:
    """Whether a parameter of this name is that of the new rows."""
    return name.endswith(_LEAF)


def with_words(config: Any, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a pipeline whose tokenizer and text encoder have the config's tokens too.

    Raises:
      UserError: a token is there already, has more vectors than a text, or its first words do not fit it.
    """
    chosen = settings(config)
    if chosen is None:
        return dict(files)
    vectors = {word.text: word.vectors for word in chosen.words}
    if embeddings.CONFIG in files and not any(name.startswith("tokenizer/") for name in files):
        # A plan for a base that is not here; a training asks for the tokenizer when it makes the rows.
        return embeddings.with_rows(files, embeddings.rows_of(files) + sum(vectors.values()))
    tokenizer = embeddings.tokenizer_of(files, "config.textual_inversion")
    for word in chosen.words:
        _ids(tokenizer, word)
    return embeddings.with_tokens(files, vectors)


def with_rows(config: Any, tokenizer: Any, parameters: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Parameters whose table has the new rows, at their first values.

    Args:
      config: whose tokens they are.
      tokenizer: with those tokens.
      parameters: of the networks; the table may lack the rows or have others in their place.
      key: of random vectors.
    """
    chosen = settings(config)
    if chosen is None:
        return dict(parameters)
    name, words = embeddings.table_of(parameters, "config.textual_inversion"), chosen.words
    first = tokenizer.convert_tokens_to_ids(words[0].text)
    table = np.asarray(parameters[name], np.float32)[:first]
    rows = [_first_rows(chosen, tokenizer, word, table, jax.random.fold_in(key, n)) for n, word in enumerate(words)]
    return {**parameters, name: jnp.asarray(np.concatenate([table, *rows]))}


def _first_rows(chosen: Settings, tokenizer: Any, word: Word, table: np.ndarray, key: jax.Array) -> np.ndarray:
    """(vectors, width): the vectors of the token's words in turn, or what `initial` says."""
    if word.words:
        return table[np.resize(_ids(tokenizer, word), word.vectors)]
    mean = np.broadcast_to(table.mean(axis=0), (word.vectors, table.shape[1]))
    if chosen.initial == "mean":
        return mean
    return mean + table.std(axis=0) * np.asarray(jax.random.normal(key, mean.shape, jnp.float32))


def _ids(tokenizer: Any, word: Word) -> list[int]:
    """The ids of a token's first words, start and end aside."""
    if not word.words:
        return []
    length = tokenizers.count(tokenizer, word.words)
    row = tokenizers.encode(tokenizer, [word.words], max(length, 3))[0]
    ids = [number for number in row.tolist() if number not in tokenizer.all_special_ids]
    where = f"config.textual_inversion.tokens: {word.text!r} starts from {word.words!r:.200}"
    if not ids or len(ids) != length - 2:  # an unknown word, a mark, or none
        raise UserError(f"{where}, which has a word that the tokenizer does not know; give others, or none")
    if len(ids) > word.vectors:
        raise UserError(
            f"{where}, which is {len(ids)} tokens, and has {word.vectors} vectors; give it {len(ids)}, or fewer words"
        )
    return ids


def _checked(values: Any, where: str) -> Settings:
    chosen: Settings = convert(values, Settings, where)
    if not math.isfinite(chosen.max_norm):
        raise UserError(f"{where}.max_norm={chosen.max_norm}: may be 0 or more")
    words = chosen.words
    for word in words:
        if twice := [other.text for other in words if other is not word and word.text in other.text]:
            raise UserError(
                f"{where}.tokens: {word.text!r} is in {twice[0]!r}, and would be replaced there; choose other words"
            )
    if not words:
        raise UserError(f"{where}.tokens: has none")
    return chosen


def _word(entry: Any) -> Word:
    parts = list(entry) if isinstance(entry, list | tuple) else [entry]
    text, vectors, words = (*parts, *Word("")[len(parts) :])[:3] if parts else ("", 1, "")
    fits = isinstance(text, str) and isinstance(words, str) and type(vectors) is int
    if not (fits and 1 <= len(parts) <= 3 and vectors > 0):
        raise UserError(
            f"config.textual_inversion.tokens has {entry!r:.200}: give (text, vectors) or (text, vectors, words), such"
            " as ('<effusion>', 4, 'pleural effusion')"
        )
    return Word(text, vectors, words)


def _learnt(table: str) -> str:
    return table.removesuffix(".embedding") + _LEAF
