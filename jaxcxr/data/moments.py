"""The cache of what frozen networks make of the data: a folder of ArrayRecord shards that training reads in its place.

Each record has the autoencoder's moments of an image, the ids of its prompts and, if asked for, the text encoder's
states of them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, SupportsIndex

import jax.numpy as jnp
import msgpack
import msgspec
import numpy as np

from jaxcxr import parsing
from jaxcxr.data import array_record, stage
from jaxcxr.data.loader import as_text
from jaxcxr.data.records import EmptySplit
from jaxcxr.data.summary import Count, Summary
from jaxcxr.errors import UserError
from jaxcxr.files import new_file

CARD = "cache.json"
Side = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
PER_SHARD = 2048  # records; what is lost of a stopped run, and what one host works on at a time


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a cache was made of; a difference in any of these makes it another's."""

    data: str  # the prepared folder's fingerprint
    compute_dtype: str
    autoencoder_weights: str
    autoencoder_config: str
    text_encoder_weights: str  # empty without states, like those below
    text_encoder_config: str
    tokenizer: str

    @classmethod
    def of(
        cls,
        data: str | Path,
        files: Mapping[str, bytes],
        weights: Mapping[str, Any],
        compute_dtype: Any,
        *,
        text: bool,
    ) -> "Origin":
        """Describes what a run's frozen networks would make.

        Args:
          data: the prepared folder.
          files: of the pipeline: configs, tokenizer.
          weights: parameters by full name; those of other networks are passed over.
          compute_dtype: the networks'.
          text: whether states are made too.

        Raises:
          UserError: `data` is not a prepared folder.
        """

        def digest(parts: Iterable[bytes]) -> str:
            whole = hashlib.blake2b(digest_size=8)
            for part in parts:
                whole.update(part)
            return whole.hexdigest()

        def of_weights(network: str) -> str:
            names = sorted(name for name in weights if name.startswith(f"{network}."))
            return digest(name.encode() + np.ascontiguousarray(weights[name], np.float32).tobytes() for name in names)

        def of_config(network: str) -> str:
            described = json.loads(files[f"{network}/config.json"])
            described.pop("scaling_factor", None)  # is applied to what is drawn from the moments
            return digest([json.dumps(described, sort_keys=True).encode()])

        tokenizer = (files[name] for name in sorted(files) if name.startswith("tokenizer/"))
        return cls(
            Summary.require(Path(data)).fingerprint,
            np.dtype(compute_dtype).name,
            of_weights("vae"),
            of_config("vae"),
            of_weights("text_encoder") if text else "",
            of_config("text_encoder") if text else "",
            digest(tokenizer) if text else "",
        )

    @property
    def text(self) -> bool:
        """Whether there are states."""
        return bool(self.text_encoder_weights)

    def check(self, other: "Origin", folder: Path) -> None:
        """Raises UserError saying what is not the same."""
        if self.text != other.text:
            has, lacks = ("has", "not asked for") if self.text else ("has no", "asked for")
            raise UserError(f"{folder}: {has} states of a text encoder, which are {lacks}; name another folder")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        if changed:
            said = " and ".join(name.replace("_", " ") for name in changed)
            raise UserError(f"{folder}: differs from this run in {said}; name another folder and run jaxcxr cache")


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of `cache.json`: what the folder holds, or will when it is complete."""

    origin: Origin
    dtype: Annotated[str, msgspec.Meta(pattern="^(bfloat16|float32)$")]  # as stored
    shape: Annotated[
        tuple[Side, ...], msgspec.Meta(min_length=3, max_length=3)
    ]  # of one record's moments: (h, w, 2 * latent_channels)
    # Of one prompt's states: (length, hidden size); empty without.
    states_shape: Annotated[tuple[Side, ...], msgspec.Meta(max_length=2)]
    tokenizer: str  # `tokens.digest` of the one that the ids are of
    splits: dict[str, Count]

    @classmethod
    def read(cls, folder: Path) -> "Card | None":
        """The card of a folder, None if it is not a cache; raises UserError if the card is damaged."""
        file = folder / CARD
        return parsing.read_json(file, cls, remedy="make the cache with jaxcxr cache") if file.is_file() else None

    def write(self, folder: Path) -> None:
        """Writes `cache.json`."""
        with new_file(folder / CARD) as file:
            file.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    def shards(self, folder: Path, split: str) -> list[Path]:
        """The split's files, in order."""
        count = -(-self.splits[split] // PER_SHARD)
        return [folder / f"{split}-{index:05}-of-{count:05}.array_record" for index in range(count)]


def pack(moments: np.ndarray, record: Mapping[str, Any], ids: np.ndarray, states: Sequence[np.ndarray] = ()) -> bytes:
    """One record of the cache.

    Args:
      moments: in the dtype to store.
      record: the prepared one.
      ids: of its prompts, int32 (prompts, length).
      states: of its prompts, (length, hidden size) each, in the dtype to store.
    """
    prompts = [as_text(text) for text in record["prompts"]]
    parts = moments.tobytes(), prompts, as_text(record["id"]), [each.tobytes() for each in states]
    return msgpack.packb([*parts, [row.tobytes() for row in ids]])


def write_shard(file: Path, records: Iterable[bytes]) -> None:
    """Writes a new shard, whole or not at all."""
    # Packed, moments are a fifth smaller but take twice the time to read.
    array_record.write(file, records, packed=False)


class Moments(Sequence[dict[str, Any]]):
    """A split of a cache.

    Records have `moments` (h, w, 2 * latent_channels), `prompts`, `id`; `input_ids`, int32 (length,) a prompt, if the
    cache's tokenizer is the one asked for; and `states`, (length, hidden size) a prompt, if the cache has them.
    """

    def __init__(self, folder: str | Path, split: str, tokenizer: str = ""):
        """Opens it, for a run with the tokenizer of this `tokens.digest`.

        Raises:
          UserError: `folder` is not a cache, not complete, or has nothing in this split.
        """
        folder = Path(folder)
        card = Card.read(folder)
        if card is None:
            raise UserError(f"{folder}: not a cache: make one with jaxcxr cache")
        if not card.splits.get(split):
            raise EmptySplit(f"{folder}: no records in split {split!r}: it has {', '.join(card.splits)}")
        shards = card.shards(folder, split)
        if absent := [shard.name for shard in shards if not stage.where(shard)]:
            raise UserError(f"{folder}: is not complete, {len(absent)} files are missing: run jaxcxr cache again")
        self._records = array_record.Files([str(shard) for shard in shards])
        self._dtype, self._card, self._with_ids = jnp.dtype(card.dtype), card, tokenizer == card.tokenizer

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        data, prompts, identity, states, ids = msgpack.unpackb(self._records[index])
        found: dict[str, Any] = {
            "moments": np.frombuffer(data, self._dtype).reshape(self._card.shape),
            "prompts": prompts,
            "id": identity,
        }
        if self._with_ids:
            found["input_ids"] = [np.frombuffer(each, np.int32) for each in ids]
        if states:
            found["states"] = [np.frombuffer(each, self._dtype).reshape(self._card.states_shape) for each in states]
        return found
