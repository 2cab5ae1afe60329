"""Sampling: one `lax.scan` over a sampler's calls, from noise or from an image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import Sampler

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""(x (B, H, W, C) float32, timestep () int32 or float32) -> the network's output (B, H, W, C)."""

After = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x (B, H, W, C) after a call, its level (α, σ) (2,), the call's keys (B,)) -> x for the next call.

Samplers draw noise from those keys; another draw is of a key folded from them.
"""


def sample(
    denoise: Denoiser, sampler: Sampler, start: jax.Array, keys: jax.Array, after: After | None = None
) -> jax.Array:
    """Integrates from `start` to an image.

    Args:
      denoise: the network, with its condition and guidance bound.
      sampler: e.g. `DDIM().sampler(50)`, or `DDIM().sampler(50, begin=25)` from the middle.
      start: x before its first call: float32 (B, H, W, C); from noise alone it is unit noise times
        `sampler.initial_scale`.
      keys: (B,), for samplers that add noise on the way: a picture's noise at call `i` is of `fold_in(its key, i)`,
        so that it does not depend on the others of its batch.
      after: what is done to x after each call, such as restoring what lies outside a mask.

    Returns:
      x_0, float32 (B, H, W, C).
    """

    def body(state, call):
        x, carry = state
        index, timestep, level, coefficients = call
        output = denoise(x, timestep).astype(jnp.float32)
        call_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        x, carry = sampler.step(x, output, coefficients, call_keys, carry)
        return (x if after is None else after(x, level, call_keys), carry), None

    # Coefficients were computed in float64; x is float32.
    calls = jax.tree.map(
        lambda values: np.asarray(values, np.float32 if values.dtype == np.float64 else values.dtype),
        (np.arange(len(sampler.timesteps)), sampler.timesteps, sampler.levels[1:], sampler.coefficients),
    )
    start = start.astype(jnp.float32)
    (x, _), _ = jax.lax.scan(body, (start, sampler.init(start)), calls)
    return x
