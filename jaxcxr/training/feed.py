"""What a run reads: this process's part of the batches of a split."""

from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcxr.data.loader import Batches, open_split


def open_batches(config: ConfigDict, split: str, tokenizer: Any, *, shuffle: bool = True) -> Batches:
    """Opens the batches of a split of `config.data.path`, by the config's seed, batch size and image size.

    Raises:
      UserError: the folder was not prepared, or at another size, or it has nothing in this split.
    """
    return Batches(
        open_split(config.data.path, split, config.data.size),
        tokenizer=tokenizer,
        seed=config.seed,
        batch_size=config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shuffle=shuffle,
    )
