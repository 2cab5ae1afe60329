"""Texts through a network that embeds them, a batch at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.extractor import Weights
from jaxcxr.models.named import with_parameters

_BATCH = 64


def embedded(
    network: Callable[[nnx.Rngs], nnx.Module], embed: Callable[[Any, jax.Array], jax.Array], weights: Weights,
    ids: np.ndarray, width: int,
) -> np.ndarray:  # fmt: skip
    """Features of texts, float32 (N, width).

    Args:
      network: makes the network.
      embed: (the network, ids (B, L)) -> (B, width).
      weights: its weights.
      ids: int32 (N, L).
      width: of a text's features.
    """
    model = nnx.eval_shape(lambda: network(nnx.Rngs(0)))
    run = jax.jit(lambda weights, ids: embed(with_parameters(model, weights), ids))
    values = {name: jnp.asarray(value) for name, value in weights.items()}
    features = np.zeros((len(ids), width), np.float32)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        whole = np.resize(batch, (min(_BATCH, len(ids)), ids.shape[1]))  # one shape, so one compilation
        with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise
            features[start : start + len(batch)] = run(values, whole)[: len(batch)]
    return features


def require_ids(ids: np.ndarray, vocab_size: int, folder: Path) -> None:
    """Raises UserError where a tokenizer gives an id that its network does not have."""
    if ids.size and ids.max() >= vocab_size:
        raise UserError(f"{folder}: the tokenizer has the id {ids.max()}, vocab_size is {vocab_size}; copy both")
