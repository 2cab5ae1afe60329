"""Editing of images: from where sampling starts, and what is done to x after each call.

Masks are float32 (B, h, w, 1), latents (B, h, w, C).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.guidance import guided
from jaxcxr.diffusion.loop import After, sample
from jaxcxr.diffusion.process import add_noise
from jaxcxr.diffusion.samplers import Sampler
from jaxcxr.diffusion.samplers.base import normal


def noised(clean: jax.Array, noise: jax.Array, sampler: Sampler) -> jax.Array:
    """An image's latents at the level that the sampler's first call is given (SDEdit: Meng et al. 2022, 2108.01073)."""
    return add_noise(clean, noise, *sampler.levels[0].astype(np.float32))


def restore_outside(clean: jax.Array, noise: jax.Array, mask: jax.Array) -> After:
    """Keeps what lies outside a mask: after each call it is the image under the same noise, at the level of x.

    RePaint without resampling (Lugmayr et al. 2022, arXiv 2201.09865, equation 8), as diffusers does it: there the
    noise is not drawn again for each call.
    """

    def after(x: jax.Array, level: jax.Array, keys: jax.Array) -> jax.Array:
        return (1 - mask) * add_noise(clean, noise, *level) + mask * x

    return after


def with_channels(unet: Callable[..., jax.Array], channels: jax.Array) -> Callable[..., jax.Array]:
    """A network that is given further channels (B, h, w, D) behind x, the same ones under each condition."""

    def wider(x: jax.Array, timesteps: jax.Array, states: jax.Array) -> jax.Array:
        repeated = jnp.tile(channels, (len(x) // len(channels), 1, 1, 1)).astype(x.dtype)
        return unet(jnp.concatenate([x, repeated], axis=-1), timesteps, states)

    return wider


def with_control(unet: Any, controlnet: Any, condition: jax.Array, scale: float = 1.0) -> Callable[..., jax.Array]:
    """A U-Net with what a ControlNet adds for condition images in [0, 1] (B, H, W, C), the same under each condition.

    `scale` is diffusers' `controlnet_conditioning_scale`.
    """
    embedding = controlnet.embed(condition)

    def controlled(x: jax.Array, timesteps: jax.Array, states: jax.Array) -> jax.Array:
        repeated = jnp.tile(embedding, (len(x) // len(embedding), 1, 1, 1))
        residuals = controlnet(x, timesteps, states, repeated)
        return unet(x, timesteps, states, residuals=[scale * each for each in residuals])

    return controlled


def edit(
    unet: Callable[..., jax.Array],
    states: jax.Array,
    weights: jax.Array,
    sampler: Sampler,
    clean: jax.Array,
    noise: jax.Array,
    keys: jax.Array,
    *,
    edit_mask: jax.Array,
    keep_mask: jax.Array,
    rescale: float = 0.0,
) -> jax.Array:
    """Edits an image where one mask allows it and keeps it where another says so.

    RadEdit (Pérez-García et al. 2024, arXiv 2312.12865, algorithm 1) on edit-friendly DDPM inversion
    (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140). The image is noised to every level with noise of its own,
    x*_i. What a step S under the first condition lacks from x*_i to x*_{i+1} is added to the edited step:
    x_{i+1} = S(x_i) + (x*_{i+1} − S(x*_i)). That is their z_i times σ_i, without the division, which fails at the last
    step, where σ is 0. Kept parts are pasted at the level that x has after the step, and clean after the last one; the
    published code pastes them one level too noisy. Where nothing is edited, the image comes back.

    Args:
      unet: as for `guided`, like `states` (N, B, L, D), of which the first condition inverts, `weights` and `rescale`.
      sampler: of one call a step, without memory of earlier ones (DDIM, DDPM).
      clean: the image's latents.
      noise: of the first level.
      keys: as for `sample`.
      edit_mask: 1 where the guided prediction counts, 0 where the one under the first condition does.
      keep_mask: 1 where the image is kept.

    Returns:
      The edited latents, float32.
    """
    lead = guided(unet, states, weights, rescale, where=edit_mask)
    invert = guided(unet, states[:1], np.ones(1))

    # One batch of both, the inverted image first: a step gives them the same noise.
    def denoise(both: jax.Array, t: jax.Array) -> jax.Array:
        inverted, x = jnp.split(both, 2)
        return jnp.concatenate([invert(inverted, t), lead(x, t)])

    def after(both: jax.Array, level: jax.Array, both_keys: jax.Array) -> jax.Array:
        stepped, x = jnp.split(both, 2)
        own = jax.vmap(jax.random.fold_in, (0, None))(jnp.split(both_keys, 2)[0], 1)
        inverted = add_noise(clean, normal(own, clean), *level)
        x = keep_mask * inverted + (1 - keep_mask) * (x - stepped + inverted)
        return jnp.concatenate([inverted, x])

    start = noised(clean, noise, sampler)
    both = sample(denoise, sampler, jnp.concatenate([start, start]), jnp.concatenate([keys, keys]), after)
    return jnp.split(both, 2)[1]


def to_latent_size(mask: jax.Array, factor: int) -> jax.Array:
    """A picture's mask (B, H, W, 1) at the size of its latents, each value the one at its corner, as in diffusers."""
    return mask[:, ::factor, ::factor].astype(jnp.float32)
