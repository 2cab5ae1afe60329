"""Guidance: how predictions under several conditions make one."""

import jax
import jax.numpy as jnp

from jaxcxr.diffusion.sampling import Denoiser


def classifier_free(unet, states: jax.Array, unconditional_states: jax.Array, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): ε_∅ + scale · (ε_c − ε_∅).

    Args:
      unet: (x (B, H, W, C), timesteps (B,), states (B, L, D)) -> (B, H, W, C).
      states: the condition, (B, L, D).
      unconditional_states: that of the empty prompt, (B, L, D).
      scale: 1 is no guidance, and then the unconditional half is not computed (diffusers' convention).
    """
    if scale <= 1:
        return lambda x, t: unet(x, jnp.full(len(x), t), states)
    both = jnp.concatenate([unconditional_states, states])

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        output = unet(jnp.concatenate([x, x]), jnp.full(2 * len(x), t), both).astype(jnp.float32)
        unconditional, conditional = jnp.split(output, 2)
        return unconditional + scale * (conditional - unconditional)

    return denoise
