"""The cache of an autoencoder's moments: a folder of ArrayRecord shards that training reads in place of images."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax.numpy as jnp
import msgpack
import numpy as np

from jaxcxr.data.loader import as_text
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.files import new_file

CARD = "cache.json"
PER_SHARD = 2048  # records; what is lost of a stopped run, and what one host works on at a time


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the moments were made of; a difference in any of these makes them another's."""

    data: str  # the prepared folder's fingerprint
    weights: str  # of the autoencoder
    architecture: str  # of the autoencoder
    compute_dtype: str

    @classmethod
    def of(cls, data: str | Path, vae_config: bytes, weights: Mapping[str, Any], compute_dtype: Any) -> "Origin":
        """Takes the autoencoder's `config.json` and its parameters by full name.

        Raises:
          UserError: `data` is not a prepared folder.
        """
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(weights):
            digest.update(name.encode() + np.ascontiguousarray(weights[name], np.float32).tobytes())
        # The scaling factor is applied to what is drawn from the moments.
        described = {key: value for key, value in json.loads(vae_config).items() if key != "scaling_factor"}
        architecture = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
        return cls(
            Summary.require(Path(data)).fingerprint, digest.hexdigest(), architecture, np.dtype(compute_dtype).name
        )

    def check(self, other: "Origin", folder: Path) -> None:
        """Raises UserError saying what is not the same."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        if changed:
            words = {"weights": "autoencoder weights", "architecture": "autoencoder config"}
            said = " and ".join(words.get(name, name.replace("_", " ")) for name in changed)
            raise UserError(f"{folder}: differs from this run in {said}; name another folder and run jaxcxr cache")


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of `cache.json`: what the folder holds, or will when it is complete."""

    origin: Origin
    dtype: str  # as stored: bfloat16 or float32
    shape: tuple[int, ...]  # of one record's moments: (h, w, 2 * latent_channels)
    splits: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> "Card | None":
        """The card of a folder; None if it is not a cache."""
        try:
            values = json.loads((folder / CARD).read_text(encoding="utf-8"))
            return cls(Origin(**values["origin"]), values["dtype"], tuple(values["shape"]), values["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Writes `cache.json`."""
        with new_file(folder / CARD) as file:
            file.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    def shards(self, folder: Path, split: str) -> list[Path]:
        """The split's files, in order."""
        count = -(-self.splits[split] // PER_SHARD)
        return [folder / f"{split}-{index:05}-of-{count:05}.array_record" for index in range(count)]


def pack(moments: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """One record of the cache, from its moments in the dtype to store and the prepared record."""
    return msgpack.packb([moments.tobytes(), [as_text(text) for text in record["prompts"]], as_text(record["id"])])


def write_shard(file: Path, records: Iterable[bytes]) -> None:
    """Writes a new shard, whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with new_file(file) as partial:
        # Each record can be read alone. Packed, moments are a fifth smaller but take twice the time to read.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()


class Moments(Sequence[dict[str, Any]]):
    """A split of a cache; records have `moments` (h, w, 2 * latent_channels), `prompts` and `id`."""

    def __init__(self, folder: str | Path, split: str):
        """Opens it.

        Raises:
          UserError: `folder` is not a cache, not complete, or has nothing in this split.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        folder = Path(folder)
        card = Card.read(folder)
        if card is None:
            raise UserError(f"{folder}: not a cache: make one with jaxcxr cache")
        if not card.splits.get(split):
            raise UserError(f"{folder}: no records in split {split!r}: it has {', '.join(card.splits)}")
        shards = card.shards(folder, split)
        if absent := [shard.name for shard in shards if not shard.is_file()]:
            raise UserError(f"{folder}: is not complete, {len(absent)} files are missing: run jaxcxr cache again")
        self._records = ArrayRecordDataSource([str(shard) for shard in shards])
        self._dtype, self._shape = jnp.dtype(card.dtype), card.shape

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        data, prompts, identity = msgpack.unpackb(self._records[index])
        return {
            "moments": np.frombuffer(data, self._dtype).reshape(self._shape),
            "prompts": prompts,
            "id": identity,
        }
