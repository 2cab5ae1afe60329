"""What is learnt: the losses, as pure float32 functions of network outputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcxr.diffusion.schedule import velocity

ERRORS: dict[str, Callable[[jax.Array], jax.Array]] = {"mse": jnp.square, "l1": jnp.abs}


def denoising_target(
    prediction_type: str, alphas_cumprod: jax.Array, sample: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """What the network should say at x_t: ε, v or x_0, float32 of `sample`'s shape."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(alphas_cumprod, sample, noise, timesteps)
    return sample


def per_example(error: str, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean error of each example, float32 (B,); `error` is a key of `ERRORS`."""
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return ERRORS[error](difference).mean(axis=tuple(range(1, difference.ndim)))


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each example, summed over its latent, float32 (B,).

    Kingma & Welling 2014, arXiv 1312.6114, appendix B; the reduction is that of diffusers' `kl()`.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(axis=tuple(range(1, mean.ndim)))
