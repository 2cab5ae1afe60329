"""The encoders of the BERT family: BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models import initial
from jaxcxr.models.attention import attention
from jaxcxr.models.compute import PORTABLE
from jaxcxr.models.layers import LayerNorm, gelu, layer_norm
from jaxcxr.models.text_config import BertConfig, layers_kept

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate=True),
    "relu": nnx.relu,
}


def _linear(config: BertConfig, in_features: int, out_features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    init = initial.normal(config.initializer_range)
    return nnx.Linear(in_features, out_features, kernel_init=init, dtype=dtype, rngs=rngs)


def _norm(config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> LayerNorm:
    return layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)


class BertEmbeddings(nnx.Module):
    """Word, position and segment embeddings, normalized."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init, width = initial.normal(config.initializer_range), config.hidden_size

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, width, embedding_init=init, dtype=dtype, rngs=rngs)

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.LayerNorm = _norm(config, dtype, rngs)

    def __call__(self, input_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """`(B, L)` ids and `(B, L)` or `(L,)` positions to `(B, L, hidden_size)`; all of the first segment."""
        segment = self.token_type_embeddings.embedding[0].astype(self.token_type_embeddings.dtype)
        return self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings(positions) + segment)


class BertSelfAttention(nnx.Module):
    """Multi-head self-attention before its output projection."""

    compute = PORTABLE

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.query = _linear(config, width, width, dtype, rngs)
        self.key = _linear(config, width, width, dtype, rngs)
        self.value = _linear(config, width, width, dtype, rngs)

    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        split = (*hidden_states.shape[:-1], self.heads, -1)
        query, key, value = (layer(hidden_states).reshape(split) for layer in (self.query, self.key, self.value))
        return attention(query, key, value, mask=mask, compute=self.compute).reshape(hidden_states.shape)


class BertOutput(nnx.Module):
    """A projection added to what came before, then normalized."""

    def __init__(self, config: BertConfig, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dense = _linear(config, in_features, config.hidden_size, dtype, rngs)
        self.LayerNorm = _norm(config, dtype, rngs)

    def __call__(self, hidden_states: jax.Array, residual: jax.Array) -> jax.Array:
        """`(B, L, in_features)` and `(B, L, hidden_size)` to `(B, L, hidden_size)`."""
        return self.LayerNorm(self.dense(hidden_states) + residual)


class BertAttention(nnx.Module):
    """Self-attention with its output."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.self = BertSelfAttention(config, dtype=dtype, rngs=rngs)
        self.output = BertOutput(config, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        return self.output(self.self(hidden_states, mask), hidden_states)


class BertIntermediate(nnx.Module):
    """The wide half of the perceptron."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.hidden_act = config.hidden_act
        self.dense = _linear(config, config.hidden_size, config.intermediate_size, dtype, rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, intermediate_size)`."""
        return _ACTIVATIONS[self.hidden_act](self.dense(hidden_states))


class BertLayer(nnx.Module):
    """Attention and perceptron, each normalized after."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = BertAttention(config, dtype=dtype, rngs=rngs)
        self.intermediate = BertIntermediate(config, dtype=dtype, rngs=rngs)
        self.output = BertOutput(config, config.intermediate_size, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        hidden_states = self.attention(hidden_states, mask)
        return self.output(self.intermediate(hidden_states), hidden_states)


class BertEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layer = nnx.List(BertLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers))

    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None, num_layers: int) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`, through the first `num_layers` layers."""
        for layer in self.layer[:num_layers]:
            hidden_states = layer(hidden_states, mask)
        return hidden_states


class BertPooler(nnx.Module):
    """The head that checkpoints carry for classification; no condition uses it."""

    def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dense = _linear(config, config.hidden_size, config.hidden_size, dtype, rngs)


class BertModel(nnx.Module):
    """A BERT or RoBERTa encoder as the condition, with the parameter names of transformers' `BertModel`.

    Args:
        config: a `config.json` of transformers, or the dataclass it becomes.
        dtype: of the computation; parameters are float32, drawn as transformers draws them.
        rngs: its `params` stream draws the initial parameters.

    Raises:
        UserError: the configuration asks for something that is not implemented.
    """

    def __init__(self, config: Mapping[str, Any] | BertConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = BertConfig.from_dict(config)
        self.dtype = dtype
        self.embeddings = BertEmbeddings(self.config, dtype=dtype, rngs=rngs)
        self.encoder = BertEncoder(self.config, dtype=dtype, rngs=rngs)
        self.pooler = BertPooler(self.config, dtype=dtype, rngs=rngs) if self.config.add_pooling_layer else None

    def __call__(self, input_ids: jax.Array, *, clip_skip: int = 0) -> jax.Array:
        """States of the last layer but `clip_skip`.

        With `use_attention_mask` in the configuration, as diffusers reads it, padding is not looked at.

        Args:
            input_ids: `(B, L)` integers, L at most what the position table holds.
            clip_skip: how many of the last layers to leave out.

        Returns:
            `(B, L, hidden_size)` in the compute dtype.

        Raises:
            UserError: the text is too long, or more layers are to be skipped than there are.
        """
        config, length = self.config, input_ids.shape[-1]
        if length > config.longest:
            raise UserError(f"{length} tokens exceed the {config.longest} that this encoder has positions for")
        num_layers = layers_kept(config.num_hidden_layers, clip_skip)
        words = input_ids != config.pad_token_id
        mask = words[:, None, None, :] if config.use_attention_mask else None
        states = self.embeddings(input_ids, self._positions(words))
        return self.encoder(states, mask, num_layers)

    def _positions(self, words: jax.Array) -> jax.Array:
        if self.config.model_type != "roberta":
            return jnp.arange(words.shape[-1])
        # Fairseq counted positions from after the padding's own row, over words alone.
        return jnp.cumsum(words, axis=-1) * words + self.config.pad_token_id
