"""The kernels of attention, and which of them serves.

All take `(B, L, heads, head_dim)`. Each forms the scores of bfloat16 inputs in float32, where the product of two
bfloat16 numbers is exact, and takes their softmax in float32: what `upcast_attention` of a diffusers configuration
asks for. None is picked that does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcxr.models.compute import GPU, Compute

LONG = 1024
"""Tokens from which on, under "auto", self-attention on a TPU is worth splash."""

SLICED = 2**16
"""Bytes of a head's scores from which on, under "auto", a CPU takes one head at a time."""

_LANES = 128  # of a TPU's vector registers: splash takes lengths in multiples of it; a tile of cuDNN's
_BATCH_AXES = ("data", "fsdp")
_HEADS_AXIS = "tensor"


def choose(compute: Compute, *, queries: int, keys: int, head_dim: int, dtype: DTypeLike, masked: bool = False) -> str:
    """The kernel for one attention: "xla", "cudnn", "splash" or "sliced".

    | kernel | under "auto" | when it is named |
    |---|---|---|
    | cudnn | GPU, half precision, no mask, head_dim ≤ 128, Lq even | as under "auto" |
    | splash | TPU, bfloat16, no mask, to itself, ≥ `LONG` tokens | no mask |
    | sliced | CPU, no mask, a head's float32 scores ≥ `SLICED` bytes | no mask |
    | xla | what is left | always |

    Where a named kernel cannot serve, XLA's does.

    Args:
        compute: the run's properties.
        queries: tokens that look.
        keys: tokens that are looked at.
        head_dim: the width of a head.
        dtype: of queries, keys and values.
        masked: whether not every query sees every key.
    """
    if masked or compute.attention == "xla":
        return "xla"
    whole = head_dim % 8 == 0
    if compute.attention in ("auto", "cudnn") and compute.platform in GPU:
        fits = head_dim <= 128 and whole and queries % 2 == 0 and dtype in (jnp.bfloat16, jnp.float16)
        return "cudnn" if fits else "xla"
    if compute.attention in ("splash", "sliced"):
        return compute.attention
    if compute.platform == "cpu":
        return "sliced" if 4 * queries * keys >= SLICED else "xla"
    long = queries == keys >= LONG and dtype == jnp.bfloat16 and whole
    return "splash" if compute.platform == "tpu" and long else "xla"


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Unmasked attention by cuDNN's kernel, which keeps no scores, forward or backward.

    Args:
        query: `(B, Lq, heads, head_dim)`, Lq even, as for an odd one JAX refuses the gradient; half precision.
        key: `(B, Lk, heads, head_dim)`. An odd Lk, as of 77 tokens, is padded; what is padded nobody sees.
        value: `(B, Lk, heads, head_dim)`.

    Returns:
        `(B, Lq, heads, head_dim)` in the dtype of `query`.
    """
    lengths = None
    if key.shape[1] % 2:
        lengths = jnp.full(len(key), key.shape[1], jnp.int32)
        padding = ((0, 0), (0, -key.shape[1] % _LANES), (0, 0), (0, 0))
        key, value = jnp.pad(key, padding), jnp.pad(value, padding)
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")


def splash(query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Unmasked attention by the TPU kernel, which keeps no scores, forward or backward.

    The kernel does not partition itself. Under a mesh (`jax.set_mesh`) every device takes its share of the batch,
    split over `data` and `fsdp`, and of the heads, split over `tensor`; what an axis does not divide is not split.

    Args:
        query: `(B, Lq, heads, head_dim)`, scaled here, in its own dtype: for head dims that are no power of
            four that rounds it once more than the other kernels do.
        key: `(B, Lk, heads, head_dim)`.
        value: `(B, Lk, heads, head_dim)`.
        interpret: run it step by step on a CPU, for tests.

    Returns:
        `(B, Lq, heads, head_dim)` in the dtype of `query`.
    """

    def local(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return _splash_on_one_device(query, key, value, interpret)

    return _on_each_device(local, query, key, value)


def sliced(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Unmasked attention, one head of one image at a time, so that its scores stay in a CPU's cache.

    The backward pass forms the scores again, head by head, and keeps none. Split over devices as `splash` is.

    Args:
        query: `(B, Lq, heads, head_dim)`.
        key: `(B, Lk, heads, head_dim)`.
        value: `(B, Lk, heads, head_dim)`.

    Returns:
        `(B, Lq, heads, head_dim)` in the dtype of `query`.
    """
    return _on_each_device(_sliced_on_one_device, query, key, value)


def _on_each_device(local: Callable[..., Any], query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`local` of each device's share of images and heads, for what does not partition itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:
        return local(query, key, value)
    sizes = {axis: mesh.shape[axis] for axis in mesh.auto_axes}
    spec = _shares(query.shape[0], query.shape[2], sizes)
    return jax.shard_map(local, in_specs=(spec, spec, spec), out_specs=spec, axis_names=set(sizes), check_vma=False)(
        query, key, value
    )


def _sliced_on_one_device(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`sliced` of `(B, L, heads, head_dim)` that lie on one device."""
    batch, heads = query.shape[0], query.shape[2]
    slices = [tokens.swapaxes(1, 2).reshape(batch * heads, *tokens.shape[1::2]) for tokens in (query, key, value)]
    mixed = _slices(*slices)
    return mixed.reshape(batch, heads, *mixed.shape[1:]).swapaxes(1, 2)


@jax.custom_vjp
def _slices(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of slices, `(N, L, head_dim)` each."""
    return _slices_forward(query, key, value)[0]


def _slices_forward(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def one(slices: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, key, value = slices
        scores = _scores(query, key)
        most = jnp.max(scores, axis=-1, keepdims=True)
        # Divided after the product, so that exponentials, the most costly of all this, are taken once.
        weights = jnp.exp(scores - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.matmul(weights, value, preferred_element_type=jnp.float32) / total
        return mixed.astype(value.dtype), (most + jnp.log(total))[:, 0]

    mixed, totals = jax.lax.map(one, inputs)
    return mixed, (*inputs, mixed, totals)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled products, float32 `(Lq, Lk)`, of `(L, head_dim)`."""
    scaled = query.astype(jnp.float32) * query.shape[-1] ** -0.5
    return jnp.einsum("qd,kd->qk", scaled, key.astype(jnp.float32))


def _slices_backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    """The gradient of FlashAttention (arXiv 2205.14135, appendix B), whose block is a whole head.

    The weights are formed twice, queries first and keys first: a CPU multiplies neither as fast transposed.
    """

    def one(slices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        query, key, value, mixed, total, gradient = (each.astype(jnp.float32) for each in slices)
        mean = jnp.sum(mixed * gradient, axis=-1)
        by_query = jnp.exp(_scores(query, key) - total[:, None]) * (gradient @ value.T - mean[:, None])
        weights = jnp.exp(_scores(key, query) - total)
        by_key = weights * (value @ gradient.T - mean)
        scale = query.shape[-1] ** -0.5
        return by_query @ key * scale, by_key @ query * scale, weights @ gradient

    gradients = jax.lax.map(one, (*kept, gradient))
    return tuple(each.astype(input.dtype) for each, input in zip(gradients, kept[:3], strict=True))


_slices.defvjp(_slices_forward, _slices_backward)


def _shares(batch: int, heads: int, sizes: dict[str, int]) -> jax.P:
    """How `(batch, L, heads, head_dim)` is split over mesh axes of these sizes."""
    split: list[str] = []
    for axis in _BATCH_AXES:
        share = sizes.get(axis, 1)
        if share > 1 and batch % share == 0:
            split.append(axis)
            batch //= share
    tensor = sizes.get(_HEADS_AXIS, 1)
    return jax.P(tuple(split) or None, None, _HEADS_AXIS if tensor > 1 and heads % tensor == 0 else None, None)


def _splash_on_one_device(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
    query, key, value = (_heads_first(tokens) for tokens in (scaled, key, value))
    seen = library.FullMask((query.shape[2], key.shape[2]))
    kernel = library.make_splash_mha(
        mask=library.MultiHeadMask([seen] * heads),
        block_sizes=_blocks(query.shape[2], key.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if key.shape[2] > keys:  # queries see the keys of their own segment: the padding is in none
        segments = library.SegmentIds(
            q=jnp.ones(query.shape[2], jnp.int32), kv=(jnp.arange(key.shape[2]) < keys).astype(jnp.int32)
        )
    mixed = jax.vmap(kernel, in_axes=(0, 0, 0, None))(query, key, value, segments)
    return mixed[:, :, :queries].swapaxes(1, 2)


def _heads_first(tokens: jax.Array) -> jax.Array:
    """`(B, L, heads, head_dim)` to `(B, heads, L', head_dim)`, L' the next multiple of the lanes."""
    return jnp.pad(tokens.swapaxes(1, 2), ((0, 0), (0, 0), (0, -tokens.shape[1] % _LANES), (0, 0)))


def _blocks(queries: int, keys: int):
    """The kernel's tiles: as large as divides the lengths, up to 512, whose scores take 1 MiB of on-chip memory."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    block_q, block_kv = (
        next(size for size in (512, 384, 256, _LANES) if length % size == 0) for length in (queries, keys)
    )
    return library.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
