"""A caching job: what frozen networks make of a prepared folder, once."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr import adaptation, buckets, interop
from jaxcxr.data import images, stage, tokens
from jaxcxr.data.loader import as_text, open_split
from jaxcxr.data.moments import PER_SHARD, Card, Origin, pack, write_shard
from jaxcxr.data.records import SPLITS
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.files import locked_folder, missing, remove_unfinished
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import method
from jaxcxr.models.compute import compiler_options
from jaxcxr.models.vae import normalize, split_moments
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import processes, rules
from jaxcxr.training import ranges
from jaxcxr.training.feed import tokenizer_folder, with_size
from jaxcxr.training.model import compute_dtype, with_text_encoder
from jaxcxr.training.pinned import pinned
from jaxcxr.training.prepared import check_settings, describe


def cache(config: ConfigDict, out: Path, dtype: str = "bfloat16", *, text: bool = False) -> None:
    """Writes the moments of all records of `config.data.path` to the folder `out`, or what is missing of them.

    Args:
      config: of the training that will read it: `data`, `model.base` (whose networks they are), `dtype`,
        `batch_size` (images at once, of all devices together).
      out: a new folder, or one that this config's job has begun.
      dtype: to store in.
      text: store the text encoder's states of the prompts too.

    Each process does its share of the shards on its own devices; a stopped job resumes at the shard it was in.

    Raises:
      UserError: the data or the base cannot be read, `out` holds something else, or another job is writing it.
    """
    ranges.check(config)
    processes.on_first(lambda: buckets.check(out))
    config, _ = stage.staged(pinned(config), quiet=jax.process_index() > 0)
    config = with_size(config)
    check_settings(config, describe(config))
    summary = Summary.require(Path(config.data.path))
    pipeline = _frozen(config, text)
    _check_frozen(config, pipeline)
    weights = {name: np.asarray(value) for name, value in pipeline.parameters().items()}
    origin = Origin.of(config.data.path, pipeline.files, weights, compute_dtype(config), text=text)
    tokenizer, mesh = _tokenizer(config, pipeline), meshes.own_mesh()
    encoder = _Encoder(pipeline, weights, tokenizer, mesh, max(1, config.batch_size // jax.process_count()), dtype)
    splits = {split: count for split in SPLITS if (count := summary.splits[split])}
    shapes = encoder.shape(config.data.size), encoder.states_shape() if text else ()
    card = Card(origin, dtype, *shapes, tokens.digest(tokenizer), splits)
    with contextlib.ExitStack() as held:
        processes.on_first(lambda: _claim(out, card, held))
        for split in splits:
            source = open_split(config.data.path, split, config.data.size)
            files = list(card.shards(out, split))
            own = processes.share_out(functools.partial(missing, files))
            for index in tqdm(own, desc=f"cache {split}", unit="shard", disable=jax.process_index() > 0):
                places = range(index * PER_SHARD, min((index + 1) * PER_SHARD, len(source)))
                write_shard(files[index], encoder.records(source, places, text))
        # A process that ends waits for the others for five minutes, and then JAX aborts them all.
        processes.on_first(lambda: None)
    print(f"{out}: {sum(splits.values())} records of {' × '.join(map(str, card.shape))}, {dtype}")


def _frozen(config: ConfigDict, text: bool) -> StableDiffusion:
    """The networks to encode with, as a training of this config would read them."""
    dtype, base, separate = compute_dtype(config), config.model.base, config.model.text_encoder_base
    if not base:
        raise UserError("config.model.base: is empty; name the checkpoint whose autoencoder is to encode")
    if not text or not separate:
        wanted = ("vae", "text_encoder") if text else ("vae",)
        pipeline = interop.load(base, dtype=dtype, only=wanted)
        if missing := [name for name in wanted if name not in pipeline.networks]:
            raise UserError(f"{base}: has no {missing[0]} to encode with" + ("; cache without --text" if text else ""))
        return pipeline
    vae = interop.load(base, dtype=dtype, only=("vae",))
    encoder = interop.load(separate, dtype=dtype, only=("text_encoder",))
    return StableDiffusion(vae.networks | encoder.networks, with_text_encoder(vae.files, encoder.files))


def _check_frozen(config: ConfigDict, pipeline: StableDiffusion) -> None:
    """Raises UserError where a training of this config would refuse the cache, since a network of it learns."""
    if not method(config).cached:
        raise UserError(f"config.method={config.method!r}: trains without a cache; it is for diffusion")
    for network, remedy in (("vae", "train without a cache"), ("text_encoder", "cache without --text")):
        if network not in pipeline.networks:
            continue
        if config.model[network]:
            raise UserError(f"config.model.{network}: describes a network that learns from scratch; {remedy}")
        names = [name for name in pipeline.parameters() if name.startswith(f"{network}.")]
        if rules.matching(names, config.trainable):
            raise UserError(f"config.trainable={config.trainable!r}: {network} learns in this training; {remedy}")
        for part, changes in adaptation.changed(config, pipeline.parameters()).items():
            if not changes.isdisjoint(names):
                raise UserError(f"config.{part}: {network} learns in this training; {remedy}")


def _tokenizer(config: ConfigDict, pipeline: StableDiffusion) -> Any:
    """The tokenizer of a training of this config: the text encoder's, and the data's for one learnt from scratch."""
    model = config.model
    if model.text_encoder:
        return tokens.load(tokenizer_folder(config))
    files = pipeline.files if "text_encoder" in pipeline.networks else {}
    if not files and (base := model.text_encoder_base or model.base):
        files = interop.read(base, only=("tokenizer",)).files
    if not any(name.startswith("tokenizer/") for name in files):
        return tokens.load(tokenizer_folder(config))
    return StableDiffusion({}, files).tokenizer


class _Encoder:
    """The networks' work on batches of one size, spread over the devices of a mesh."""

    def __init__(
        self,
        pipeline: StableDiffusion,
        weights: Mapping[str, Any],
        tokenizer: Any,
        mesh: Any,
        batch_size: int,
        dtype: str,
    ):
        self._pipeline, self._tokenizer, self._dtype = pipeline, tokenizer, dtype
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = meshes.batch_sharding(mesh)
        self._weights = jax.device_put(dict(weights), meshes.replicated(mesh))
        compiled = functools.partial(jax.jit, compiler_options=compiler_options(mesh))
        self._encode_image, self._encode_text = compiled(self._moments), compiled(self._states)

    def shape(self, side: int) -> tuple[int, ...]:
        """That of the moments of an image of `side` pixels."""
        image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.uint8)
        return jax.eval_shape(self._moments, self._weights, image).shape[1:]

    def states_shape(self) -> tuple[int, ...]:
        """That of a prompt's states."""
        ids = jax.ShapeDtypeStruct((1, self._length), jnp.int32)
        return jax.eval_shape(self._states, self._weights, ids).shape[1:]

    def records(self, source: Sequence[Any], places: range, text: bool) -> Iterator[bytes]:
        """Yields the cache's records for these places."""
        for start in range(0, len(places), self._batch_size):
            records = [source[place] for place in places[start : start + self._batch_size]]
            pictures = np.stack([images.decode_png(record["image"]) for record in records])
            prompts = [as_text(prompt) for record in records for prompt in record["prompts"]]
            ids = tokens.encode(self._tokenizer, prompts, self._length)
            states = np.concatenate([*self._batches(self._encode_text, ids)]) if text else None
            encoded = np.concatenate([*self._batches(self._encode_image, pictures)])
            last = 0
            for record, moments in zip(records, encoded, strict=True):
                own = slice(last, last := last + len(record["prompts"]))
                yield pack(moments, record, ids[own], [] if states is None else list(states[own]))

    @property
    def _length(self) -> int:
        return tokens.length(self._tokenizer)

    def _batches(self, encode: Any, values: np.ndarray) -> Iterator[np.ndarray]:
        """Encodes batch by batch; the last is filled up, so that one program serves all."""
        for start in range(0, len(values), self._batch_size):
            part = values[start : start + self._batch_size]
            missing = self._batch_size - len(part)
            filled = np.pad(part, ((0, missing), *((0, 0),) * (part.ndim - 1)), mode="edge")
            yield np.asarray(encode(self._weights, jax.device_put(filled, self._sharding)))[: len(part)]

    def _moments(self, weights: Any, image: jax.Array) -> jax.Array:
        vae = self._pipeline.with_parameters(weights).vae
        moments = vae.encode(normalize(image, vae.config.in_channels))
        # Held within bounds before they are rounded, as training holds them.
        return jnp.concatenate(split_moments(moments), axis=-1).astype(self._dtype)

    def _states(self, weights: Any, ids: jax.Array) -> jax.Array:
        return self._pipeline.with_parameters(weights).text_encoder(ids).astype(self._dtype)


def _claim(out: Path, card: Card, held: contextlib.ExitStack) -> None:
    """Makes `out` this job's, alone until `held` is closed."""
    begun = Card.read(out)
    if begun is None and out.exists() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(f"{out}: is not empty and no cache; name another --out")
    if begun is not None:
        begun.origin.check(card.origin, out)
        if begun != card:
            held_as = f"moments in {begun.dtype}" if begun.dtype != card.dtype else "ids of another tokenizer"
            raise UserError(f"{out}: holds {held_as}; name another --out")
    held.enter_context(locked_folder(out, private=True))
    remove_unfinished(out)
    if begun is None:
        card.write(out)
