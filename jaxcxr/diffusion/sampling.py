"""Sampling: one `lax.scan` over the timesteps, with the sampler's step passed in."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.errors import UserError

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t (B, H, W, C) float32, t () int32) -> the network's output (B, H, W, C)."""


class Step(Protocol):
    """One step of a sampler, from x_t to the x of the next timestep."""

    def __call__(
        self, x: jax.Array, output: jax.Array, coefficients: Any, keys: jax.Array, carry: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the next x and the sampler's own memory of earlier steps."""
        ...


class Sampler(NamedTuple):
    """What `sample` needs to know of a sampler.

    Attributes:
      timesteps: int32 (num_steps,), from noise to image.
      coefficients: a tree of arrays (num_steps, …), one row a step.
      step: the update.
      init: x -> the memory before the first step.
    """

    timesteps: np.ndarray
    coefficients: Any
    step: Step
    init: Callable[[jax.Array], Any] = lambda x: ()


def sample(denoise: Denoiser, sampler: Sampler, noise: jax.Array, keys: jax.Array) -> jax.Array:
    """Integrates from `noise` to an image.

    Args:
      denoise: the network, with its condition and guidance bound.
      sampler: e.g. `ddim(schedule, 50)`.
      noise: x_T, float32 (B, H, W, C), of unit variance.
      keys: (B,), for samplers that add noise on the way: a picture's noise at step `i` is of `fold_in(its key, i)`,
        so that it does not depend on the others of its batch.

    Returns:
      x_0, float32 (B, H, W, C).
    """

    def body(state, step):
        x, carry = state
        index, timestep, coefficients = step
        output = denoise(x, timestep).astype(jnp.float32)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return sampler.step(x, output, coefficients, step_keys, carry), None

    steps = (np.arange(len(sampler.timesteps)), sampler.timesteps, sampler.coefficients)
    (x, _), _ = jax.lax.scan(body, (noise.astype(jnp.float32), sampler.init(noise)), steps)
    return x


class DDIMCoefficients(NamedTuple):
    """ᾱ at this timestep and at the next, and the standard deviation of the noise added; float32 (num_steps,)."""

    alpha: np.ndarray
    alpha_next: np.ndarray
    sigma: np.ndarray


def ddim(schedule: Schedule, num_steps: int, eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12); `eta` 0 is deterministic, 1 is DDPM's variance.

    Raises:
      UserError: the schedule asks for another sampler, has no so many steps, or begins where the noise that is
        predicted tells nothing.
    """
    schedule.require_drawable()
    timesteps = schedule.timesteps(num_steps)
    bar = schedule.alphas_cumprod()
    if schedule.prediction_type == "epsilon" and not bar[timesteps].all():
        raise UserError(
            "scheduler_config.json: prediction_type 'epsilon' from noise alone (rescale_betas_zero_snr) draws nothing;"
            " it may be 'v_prediction' or 'sample'"
        )
    last = np.float32(1) if schedule.set_alpha_to_one else bar[0]
    following = timesteps - schedule.num_train_timesteps // num_steps
    alpha, alpha_next = bar[timesteps], np.where(following >= 0, bar[np.maximum(following, 0)], last)
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    coefficients = DDIMCoefficients(alpha, alpha_next, np.float32(eta) * np.sqrt(np.maximum(variance, 0)))

    def step(x, output, coefficients, keys, carry):
        alpha, alpha_next, sigma = coefficients
        clean, noise = clean_and_noise(schedule.prediction_type, x, output, alpha)
        if schedule.clip_sample:
            clean = jnp.clip(clean, -schedule.clip_sample_range, schedule.clip_sample_range)
        x = jnp.sqrt(alpha_next) * clean + jnp.sqrt(1 - alpha_next - sigma**2) * noise
        if eta > 0:
            x = x + sigma * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return x, carry

    return Sampler(timesteps, coefficients, step)


def clean_and_noise(
    prediction_type: str, x: jax.Array, output: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Reads x_0 and ε off a network's output at x_t, for ᾱ_t = `alpha`."""
    signal, sigma = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    if prediction_type == "epsilon":
        return (x - sigma * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * x - sigma * output, signal * output + sigma * x
    return output, (x - signal * output) / sigma
