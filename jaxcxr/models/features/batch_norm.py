"""Batch normalization by statistics that are known (arXiv 1502.03167)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class BatchNorm(nnx.Module):
    """`(x − mean) / sqrt(var + epsilon) · scale + bias` of `(..., C)`: PyTorch's `BatchNorm2d` after training.

    Mean and variance are parameters like the other two; PyTorch calls them `running_mean` and `running_var`.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.ones(channels))

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the normalized `(..., C)`, float32."""
        rate = jax.lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...]
        return hidden_states * rate + (self.bias[...] - self.mean[...] * rate)
