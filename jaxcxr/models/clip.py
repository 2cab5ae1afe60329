"""The text encoder of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models import initial
from jaxcxr.models.attention import attention
from jaxcxr.models.compute import PORTABLE
from jaxcxr.models.layers import gelu, layer_norm
from jaxcxr.models.text_config import CLIPTextConfig, layers_kept


def _linear(in_features: int, out_features: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, kernel_init=initial.normal(std), dtype=dtype, rngs=rngs)


def _activation(name: str, hidden_states: jax.Array) -> jax.Array:
    if name == "quick_gelu":
        return hidden_states * nnx.sigmoid(1.702 * hidden_states)
    return gelu(hidden_states)


class CLIPTextEmbeddings(nnx.Module):
    """Token plus position embeddings."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = initial.normal(0.02 * config.initializer_factor)
        self.token_embedding = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.max_position_embeddings, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """`(B, L) -> (B, L, hidden_size)`."""
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[-1]))


class CLIPAttention(nnx.Module):
    """Multi-head self-attention, causal unless a subclass says otherwise."""

    compute = PORTABLE
    causal = True

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = config.num_attention_heads
        width = config.hidden_size
        out_std = width**-0.5 * config.initializer_factor
        in_std = out_std * (2 * config.num_hidden_layers) ** -0.5
        self.q_proj = _linear(width, width, in_std, dtype, rngs)
        self.k_proj = _linear(width, width, in_std, dtype, rngs)
        self.v_proj = _linear(width, width, in_std, dtype, rngs)
        self.out_proj = _linear(width, width, out_std, dtype, rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        batch, length, width = hidden_states.shape
        query, key, value = (
            projection(hidden_states).reshape(batch, length, self.heads, width // self.heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attention(query, key, value, causal=self.causal, compute=self.compute)
        return self.out_proj(mixed.reshape(batch, length, width))


class CLIPMLP(nnx.Module):
    """The two-layer perceptron of a CLIP layer."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.hidden_act = config.hidden_act
        width, inner = config.hidden_size, config.intermediate_size
        in_std = (2 * width) ** -0.5 * config.initializer_factor
        out_std = width**-0.5 * (2 * config.num_hidden_layers) ** -0.5 * config.initializer_factor
        self.fc1 = _linear(width, inner, in_std, dtype, rngs)
        self.fc2 = _linear(inner, width, out_std, dtype, rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        return self.fc2(_activation(self.hidden_act, self.fc1(hidden_states)))


class CLIPEncoderLayer(nnx.Module):
    """Attention and perceptron, each normalized before and added after."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.self_attn = CLIPAttention(config, dtype=dtype, rngs=rngs)
        self.layer_norm1 = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = CLIPMLP(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layers = nnx.List(
            CLIPEncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, hidden_states: jax.Array, num_layers: int) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`, through the first `num_layers` layers."""
        for layer in self.layers[:num_layers]:
            hidden_states = layer(hidden_states)
        return hidden_states


class CLIPTextTransformer(nnx.Module):
    """Embeddings, encoder and final norm: the `text_model` of a checkpoint."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = CLIPTextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = CLIPEncoder(config, dtype=dtype, rngs=rngs)
        self.final_layer_norm = layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids: jax.Array, num_layers: int) -> jax.Array:
        """`(B, L) -> (B, L, hidden_size)`."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids), num_layers))


class CLIPTextModel(nnx.Module):
    """The text half of CLIP (arXiv 2103.00020), with the parameter names Stable Diffusion's files have.

    Args:
        config: a `config.json` of transformers, or the dataclass it becomes.
        dtype: of the computation; parameters are float32, drawn as transformers draws them.
        rngs: its `params` stream draws the initial parameters.

    Raises:
        UserError: the configuration asks for something that is not implemented.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | CLIPTextConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = CLIPTextConfig.from_dict(config)
        self.dtype = dtype
        self.text_model = CLIPTextTransformer(self.config, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids: jax.Array, *, clip_skip: int = 0) -> jax.Array:
        """States of the last layer but `clip_skip`, after the final norm.

        Args:
            input_ids: `(B, L)` integers, L at most `max_position_embeddings`.
            clip_skip: how many of the last layers to leave out.

        Returns:
            `(B, L, hidden_size)` in the compute dtype.

        Raises:
            UserError: the text is too long, or more layers are to be skipped than there are.
        """
        longest = self.config.max_position_embeddings
        if input_ids.shape[-1] > longest:
            raise UserError(f"{input_ids.shape[-1]} tokens exceed max_position_embeddings = {longest}")
        return self.text_model(input_ids, layers_kept(self.config.num_hidden_layers, clip_skip))

    def pool(self, last_hidden_state: jax.Array, input_ids: jax.Array) -> jax.Array:
        """The state at the first end-of-text token: `(B, L, D)` and `(B, L)` to `(B, D)`."""
        # Configurations from before transformers 4.31 say 2, which is wrong; the end of text is then
        # the highest token there is.
        legacy = self.config.eos_token_id == 2
        ends = jnp.argmax(input_ids if legacy else input_ids == self.config.eos_token_id, axis=-1)
        return jnp.take_along_axis(last_hidden_state, ends[:, None, None], axis=1)[:, 0]
