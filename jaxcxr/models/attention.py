"""Attention: the kernel, and the transformer blocks built on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.models import attention_kernels as kernels
from jaxcxr.models.compute import PORTABLE, Compute, rematerialized
from jaxcxr.models.layers import Identity, conv, group_norm, layer_norm, linear


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    compute: Compute,
) -> jax.Array:
    """Scaled dot-product attention (arXiv 1706.03762) by the kernel that `attention_kernels.choose` picks.

    Scores and softmax are float32 whatever the inputs' dtype.

    Args:
        query: `(B, Lq, heads, head_dim)`.
        key: `(B, Lk, heads, head_dim)`.
        value: `(B, Lk, heads, head_dim)`.
        mask: boolean, broadcastable to `(B, heads, Lq, Lk)`; True where a query may look.
        causal: whether a query sees only the keys up to its own position.
        compute: the run's properties, which decide the kernel and whether its scores are kept.

    Returns:
        `(B, Lq, heads, head_dim)` in the dtype of `query`.
    """
    kernel = kernels.choose(
        compute,
        queries=query.shape[1],
        keys=key.shape[1],
        head_dim=query.shape[-1],
        dtype=query.dtype,
        masked=causal or mask is not None,
    )
    if kernel == "splash":
        return kernels.splash(query, key, value, interpret=compute.platform == "cpu")
    if kernel == "cudnn":
        return kernels.cudnn(query, key, value)
    if kernel == "sliced":
        return kernels.sliced(query, key, value)
    dense: Callable[..., jax.Array] = functools.partial(
        jax.nn.dot_product_attention, is_causal=causal, implementation="xla"
    )
    if compute.remat == "attention":  # the other kernels keep no scores in any case
        dense = jax.checkpoint(dense)
    return dense(query, key, value, mask=mask)


class Attention(nnx.Module):
    """Multi-head attention from tokens to themselves or to a context."""

    compute = PORTABLE

    def __init__(
        self,
        query_dim: int,
        *,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        inner_dim = heads * head_dim
        context_dim = context_dim or query_dim
        self.to_q = linear(query_dim, inner_dim, bias=bias, dtype=dtype, rngs=rngs)
        self.to_k = linear(context_dim, inner_dim, bias=bias, dtype=dtype, rngs=rngs)
        self.to_v = linear(context_dim, inner_dim, bias=bias, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([linear(inner_dim, query_dim, dtype=dtype, rngs=rngs)])

    def _split_heads(self, tokens: jax.Array) -> jax.Array:
        return tokens.reshape(*tokens.shape[:-1], self.heads, -1)

    def __call__(self, hidden_states: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """`(B, L, query_dim)`, looking at `(B, Lc, context_dim)` or at itself, to `(B, L, query_dim)`."""
        context = hidden_states if context is None else context
        mixed = attention(
            self._split_heads(self.to_q(hidden_states)),
            self._split_heads(self.to_k(context)),
            self._split_heads(self.to_v(context)),
            compute=self.compute,
        )
        return self.to_out[0](mixed.reshape(*mixed.shape[:-2], -1))


class SelfAttention2D(Attention):
    """Self-attention between the pixels of a normalized image, added to the image."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        groups: int,
        epsilon: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, heads=channels // head_dim, head_dim=head_dim, bias=True, dtype=dtype, rngs=rngs)
        self.group_norm = group_norm(channels, groups, epsilon=epsilon, dtype=dtype, rngs=rngs)

    @rematerialized
    def __call__(self, hidden_states: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """`(B, H, W, C) -> (B, H, W, C)`; `context` is accepted, as by its sibling, and not looked at."""
        batch, _, _, channels = hidden_states.shape
        tokens = self.group_norm(hidden_states).reshape(batch, -1, channels)
        return super().__call__(tokens).reshape(hidden_states.shape) + hidden_states


class GEGLU(nnx.Module):
    """A gated linear unit with GELU (arXiv 2002.05202): `(..., dim_in) -> (..., dim_out)`."""

    def __init__(self, dim_in: int, dim_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = linear(dim_in, 2 * dim_out, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the value half times the GELU of the gate half."""
        return _gated(self.proj(hidden_states))


@jax.custom_vjp
def _gated(projected: jax.Array) -> jax.Array:
    """The value half of `(..., 2 dim)` times the GELU of the gate half, `(..., dim)`, rounded once."""
    value, gate = jnp.split(projected, 2, axis=-1)
    gated = value.astype(jnp.float32) * nnx.gelu(gate.astype(jnp.float32), approximate=False)
    return gated.astype(value.dtype)


def _gated_gradient(projected, gradient):
    # Left to differentiation, the gate's error function would be kept in float32: nothing in a step is larger.
    value, gate, gradient = (x.astype(jnp.float32) for x in (*jnp.split(projected, 2, axis=-1), gradient))
    scaled = gate * math.sqrt(0.5)
    of_value = gradient * gate * jax.lax.erfc(-scaled) / 2
    # Once more, and as another function, or XLA keeps it between the two halves.
    below = (1 + jax.lax.erf(scaled)) / 2
    of_gate = gradient * value * (below + gate * jnp.exp(-scaled * scaled) / math.sqrt(2 * math.pi))
    return (jnp.concatenate([of_value, of_gate], axis=-1).astype(projected.dtype),)


_gated.defvjp(lambda projected: (_gated(projected), projected), _gated_gradient)


class FeedForward(nnx.Module):
    """The transformer's two-layer perceptron, four times as wide inside."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.net = nnx.List(
            [
                GEGLU(dim, 4 * dim, dtype=dtype, rngs=rngs),
                Identity(),
                linear(4 * dim, dim, dtype=dtype, rngs=rngs),
            ]
        )

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, dim) -> (B, L, dim)`."""
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention and a perceptron, each normalized before and added after."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        context_dim: int,
        only_cross_attention: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.only_cross_attention = only_cross_attention
        head_dim = dim // heads
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.attn1 = Attention(
            dim,
            heads=heads,
            head_dim=head_dim,
            context_dim=context_dim if only_cross_attention else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.attn2 = Attention(dim, heads=heads, head_dim=head_dim, context_dim=context_dim, dtype=dtype, rngs=rngs)
        self.norm3 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: jax.Array, context: jax.Array) -> jax.Array:
        """`(B, L, dim)` and `(B, Lc, context_dim)` to `(B, L, dim)`."""
        first_context = context if self.only_cross_attention else None
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states), first_context)
        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), context)
        return hidden_states + self.ff(self.norm3(hidden_states))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of an image, added to it (arXiv 2112.10752).

    The projections in and out are 1×1 convolutions or, with `use_linear_projection`, dense layers: the
    same map under a kernel of another shape.
    """

    compute = PORTABLE

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        num_layers: int,
        context_dim: int,
        groups: int,
        use_linear_projection: bool,
        only_cross_attention: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        # As in diffusers, heads that do not divide the channels leave the remainder out.
        inner_dim = heads * (channels // heads)

        def projection(features_in: int, features_out: int) -> nnx.Module:
            if use_linear_projection:
                return linear(features_in, features_out, dtype=dtype, rngs=rngs)
            return conv(features_in, features_out, 1, dtype=dtype, rngs=rngs)

        self.norm = group_norm(channels, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.proj_in = projection(channels, inner_dim)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(
                inner_dim,
                heads=heads,
                context_dim=context_dim,
                only_cross_attention=only_cross_attention,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.proj_out = projection(inner_dim, channels)

    @rematerialized
    def __call__(self, hidden_states: jax.Array, context: jax.Array) -> jax.Array:
        """`(B, H, W, C)` and `(B, Lc, context_dim)` to `(B, H, W, C)`."""
        batch, height, width, _ = hidden_states.shape
        projected = self.proj_in(self.norm(hidden_states))
        tokens = projected.reshape(batch, height * width, -1)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.reshape(projected.shape)) + hidden_states
