"""Batch normalization (arXiv 1502.03167)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models.layers import standardized

MOMENTUM = 0.1
"""The share of a batch's statistics in the running ones, PyTorch's."""


class BatchNorm(nnx.Module):
    """`(x − mean) / sqrt(var + epsilon) · scale + bias` of `(..., C)`: PyTorch's `BatchNorm2d`.

    Mean and variance are parameters like the other two; PyTorch calls them `running_mean` and `running_var`. While it
    learns, the batch's own statistics take their place, and a call moves the running ones towards those.

    Attributes:
      learning: whether it does; false at first.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.learning = False
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.ones(channels))

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the normalized `(..., C)` in the dtype of `hidden_states`, rounded once."""
        if self.learning:
            self._follow(hidden_states.astype(jnp.float32))
            normalized = standardized(hidden_states, _mean, self.epsilon)
            return (normalized * self.scale[...] + self.bias[...]).astype(hidden_states.dtype)
        rate = jax.lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...]
        return (hidden_states * rate + (self.bias[...] - self.mean[...] * rate)).astype(hidden_states.dtype)

    def _follow(self, x: jax.Array) -> None:
        """Moves the running statistics; as PyTorch's, their variance is the unbiased one."""
        x = jax.lax.stop_gradient(x)
        mean, count = _mean(x), x.size // x.shape[-1]
        variance = _mean(jnp.square(x - mean)) * (count / max(count - 1, 1))
        for running, own in ((self.mean, mean), (self.var, variance)):
            running.set_value((1 - MOMENTUM) * running[...] + MOMENTUM * own)


def _mean(x: jax.Array) -> jax.Array:
    """The mean of each channel: `(..., C) -> (C,)`."""
    return x.mean(axis=tuple(range(x.ndim - 1)))
