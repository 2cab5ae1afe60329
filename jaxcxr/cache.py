"""A caching job: every image of a prepared folder to the moments of its latent, once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr import interop
from jaxcxr.data import images
from jaxcxr.data.loader import open_split
from jaxcxr.data.moments import PER_SHARD, Card, Origin, pack, write_shard
from jaxcxr.data.records import SPLITS
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.models.vae import split_moments
from jaxcxr.training.model import compute_dtype
from jaxcxr.training.objectives import normalize


def cache(config: ConfigDict, out: Path, dtype: str = "bfloat16") -> None:
    """Writes the moments of all records of `config.data.path` to the folder `out`, or what is missing of them.

    Args:
      config: of the training that will read it: `data`, `model.base` (whose autoencoder it is), `dtype`,
        `batch_size` (images at once, of all devices together).
      out: a new folder, or one that this config's job has begun.
      dtype: to store the moments in.

    Each process does its share of the shards on its own devices; a stopped job goes on at the shard it was in.

    Raises:
      UserError: the data or the base cannot be read, or `out` holds something else.
    """
    summary = Summary.require(Path(config.data.path))
    pipeline = interop.load(config.model.base, dtype=compute_dtype(config), only=("vae",))
    weights = {name: np.asarray(value) for name, value in pipeline.parameters().items()}
    vae = pipeline.vae
    origin = Origin.of(config.data.path, pipeline.files["vae/config.json"], weights, vae.dtype)

    @jax.jit
    def encode(image: jax.Array) -> jax.Array:
        moments = pipeline.with_parameters(weights).vae.encode(normalize(image, vae.config.in_channels))
        # Held within bounds before they are rounded, as training holds them.
        return jnp.concatenate(split_moments(moments), axis=-1).astype(dtype)

    side = config.data.size
    shape = jax.eval_shape(encode, jax.ShapeDtypeStruct((1, side, side, 1), jnp.uint8)).shape[1:]
    splits = {split: count for split in SPLITS if (count := summary.splits[split])}
    card = Card(origin, dtype, tuple(shape), splits)
    _claim(out, card)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), devices=jax.local_devices())
    batch_size = -(-config.batch_size // jax.process_count() // mesh.size) * mesh.size
    for split in splits:
        source = open_split(config.data.path, split, side)
        shards = list(enumerate(card.shards(out, split)))[jax.process_index() :: jax.process_count()]
        for index, file in tqdm(shards, desc=f"cache {split}", unit="shard", disable=jax.process_index() > 0):
            if not file.is_file():
                places = range(index * PER_SHARD, min((index + 1) * PER_SHARD, len(source)))
                write_shard(file, _records(source, places, encode, batch_size, mesh))
    print(f"{out}: {sum(splits.values())} records of {' × '.join(map(str, shape))}, {dtype}")


def _records(source: Sequence[Any], places: range, encode: Any, batch_size: int, mesh: Any) -> Iterator[bytes]:
    """The cache's records for these places, encoded `batch_size` at a time on the devices of `mesh`."""
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for start in range(0, len(places), batch_size):
        records = [source[place] for place in places[start : start + batch_size]]
        batch = np.stack([images.decode_png(record["image"]) for record in records])
        # The last batch is filled up, so that one program serves all.
        filled = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)), mode="edge")
        moments = np.asarray(encode(jax.device_put(filled, sharding)))
        for record, each in zip(records, moments, strict=False):
            yield pack(each, record)


def _claim(out: Path, card: Card) -> None:
    begun = Card.read(out)
    if begun is None and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and no cache; name another --out")
    if begun is not None:
        begun.origin.check(card.origin, out)
        if begun != card:
            raise UserError(f"{out}: holds moments in {begun.dtype}; name another --out")
    elif jax.process_index() == 0:
        card.write(out)
