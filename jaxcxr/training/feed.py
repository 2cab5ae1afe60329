"""What a run reads: this process's part of the batches of a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.moments import Card, Moments, Origin
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion


def open_batches(config: ConfigDict, split: str, tokenizer: Any, *, shuffle: bool = True) -> Batches:
    """Opens the batches of a split of `config.data.path`, by the config's seed, batch size and image size.

    Raises:
      UserError: the folder was not prepared, or at another size, or it has nothing in this split.
    """
    data = config.data
    source = Moments(data.cache, split) if data.cache else open_split(data.path, split, data.size)
    return Batches(
        source,
        tokenizer=tokenizer,
        seed=config.seed,
        batch_size=config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shuffle=shuffle,
    )


def check_cache(config: ConfigDict, pipeline: StableDiffusion, learns: set[str], weights: Mapping[str, Any]) -> None:
    """Sees to it that `config.data.cache` was made of this run's data and autoencoder.

    Args:
      learns: the names of the parameters that learn.
      weights: all of the run's or the autoencoder's, by full name.

    Raises:
      UserError: it was not, or the autoencoder learns.
    """
    if config.objective.name != "diffusion" or any(name.startswith("vae.") for name in learns):
        raise UserError("config.data.cache: holds latents of an autoencoder that is not learning; leave it empty here")
    card = Card.read(Path(config.data.cache))
    assert card is not None
    frozen = {name: value for name, value in weights.items() if name.startswith("vae.")}
    origin = Origin.of(config.data.path, pipeline.files["vae/config.json"], frozen, pipeline.vae.dtype)
    card.origin.check(origin, Path(config.data.cache))
