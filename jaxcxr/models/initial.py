"""First values of parameters, drawn by NumPy on the host.

A network has hundreds of differently shaped kernels, and XLA takes most of a minute to compile a threefry
draw for each. NumPy draws them at once, and the same values on every backend, mesh and version of JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

zeros: nnx.Initializer = nnx.initializers.zeros_init()


def narrow_posterior(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None):
    """Moments' bias: mean 0, log-variance −6.

    A posterior that starts at N(0, 1), as it would from zeros, drowns the latents in its own noise, and a
    short training leaves half of their channels unused.
    """
    return jnp.where(jnp.arange(shape[0]) < shape[0] // 2, 0.0, -6.0).astype(dtype)


def normal(std: float) -> nnx.Initializer:
    """N(0, std²)."""
    return _drawn(lambda rng, shape: std * rng.standard_normal(shape, np.float32))


def torch_kernel() -> nnx.Initializer:
    """U(±1/sqrt(fan_in)), which is how PyTorch starts linear layers and convolutions."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        bound = np.float32(1 / math.sqrt(math.prod(shape[:-1])))
        return (2 * rng.random(shape, np.float32) - 1) * bound

    return _drawn(draw)


def _drawn(draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> nnx.Initializer:
    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None):
        def on_host(bits: np.ndarray) -> np.ndarray:
            return draw(np.random.Generator(np.random.Philox(key=np.asarray(bits, np.uint64))), tuple(shape))

        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(on_host, result, jax.random.key_data(key)).astype(dtype)

    return initializer
