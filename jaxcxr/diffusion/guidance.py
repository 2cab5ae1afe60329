"""Guidance: predictions under several conditions, as one weighted sum."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.loop import Denoiser


def classifier_free(scale: float, parts: Sequence[float] = (1.0,)) -> np.ndarray:
    """Weights of u, c_1, …, c_n in u + Σ wᵢ s (cᵢ − u); float32 (1 + n,).

    With one part this is classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), and u may be of a negative
    prompt. With several it is the conjunction of Liu et al. 2022, arXiv 2206.01714, equation 11, whose weights `parts`
    may be negative and need not sum to 1; weights 1 − t and t interpolate between two prompts.
    """
    weights = scale * np.asarray(parts, np.float32)
    return np.concatenate([[1 - weights.sum()], weights]).astype(np.float32)


def guided(
    unet: Callable[..., jax.Array],
    states: jax.Array,
    weights: jax.Array | np.ndarray,
    rescale: float = 0.0,
    where: jax.Array | None = None,
) -> Denoiser:
    """A denoiser that gives Σ wᵢ ε(x, cᵢ), the network called once for all conditions.

    Args:
      unet: (x (N B, H, W, C), timesteps (N B,), states (N B, L, D)) -> (N B, H, W, C).
      states: the conditions, (N, B, L, D); the first is the one guided away from.
      weights: (N,) for all pictures, or (N, B).
      rescale: how far the spread of the sum is brought back to that of the prediction under the other conditions
        (Lin et al. 2023, arXiv 2305.08891, section 3.4); 0 is not at all.
      where: (B, H, W, 1), 1 where the sum counts and 0 where the prediction under the first condition does.
    """
    count, batch = states.shape[:2]
    weights = jnp.asarray(weights, jnp.float32).reshape(count, -1, 1, 1, 1)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        tiled = jnp.broadcast_to(x, (count, *x.shape)).reshape(-1, *x.shape[1:])
        outputs = unet(tiled, jnp.full(len(tiled), t), states.reshape(-1, *states.shape[2:])).astype(jnp.float32)
        outputs = outputs.reshape(count, batch, *outputs.shape[1:])
        mixed = (weights * outputs).sum(axis=0)
        if rescale:
            conditional = (weights[1:] * outputs[1:]).sum(axis=0) / weights[1:].sum(axis=0)
            factor = _spread(conditional) / _spread(mixed)
            mixed = mixed * (rescale * factor + 1 - rescale)
        return mixed if where is None else where * mixed + (1 - where) * outputs[0]

    return denoise


def _spread(x: jax.Array) -> jax.Array:
    """The standard deviation of each picture, (B, 1, 1, 1), as PyTorch computes it."""
    return x.std(axis=tuple(range(1, x.ndim)), ddof=1, keepdims=True)
