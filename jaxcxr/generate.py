"""From prompts to pictures with a pipeline's three networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.data import tokens
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.diffusion.sampling import Sampler, sample
from jaxcxr.interop.pipeline import StableDiffusion

Generate = Callable[[Any, jax.Array | np.ndarray, jax.Array | np.ndarray, jax.Array], jax.Array]
"""(parameters, input_ids (B, L), noise (B, h, w, C), key) -> pictures, float32 (B, H, W, C) in [0, 1]."""


def make_generate(pipeline: StableDiffusion, sampler: Sampler, guidance: float) -> Generate:
    """The compiled generation of one batch; `guidance` 1 is no classifier-free guidance."""
    empty = tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer))

    @jax.jit
    def generate(parameters, input_ids, noise, key):
        networks = pipeline.with_parameters(parameters)
        states = networks.text_encoder(input_ids)
        nothing = jnp.broadcast_to(networks.text_encoder(jnp.asarray(empty)), states.shape)
        denoise = classifier_free(networks.unet, states, nothing, guidance)
        latents = sample(denoise, sampler, noise, key)
        image = networks.vae.decode(latents / networks.vae.config.scaling_factor).astype(jnp.float32)
        return jnp.clip(image / 2 + 0.5, 0, 1)

    return generate


def latent_shape(pipeline: StableDiffusion, size: int) -> tuple[int, int, int]:
    """(h, w, C) of the latents of pictures of side `size`."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    return size // factor, size // factor, pipeline.unet.config.in_channels


def initial_noise(seed: int, index: int, shape: tuple[int, int, int]) -> np.ndarray:
    """x_T of picture number `index` of a job, float32 `shape`; it depends on nothing but these."""
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape))


def to_gray(pictures: jax.Array | np.ndarray) -> np.ndarray:
    """uint8 (B, H, W) of pictures (B, H, W, C) in [0, 1]; the channels of a gray picture agree and are averaged."""
    return np.round(np.asarray(pictures, np.float32).mean(axis=-1) * 255).astype(np.uint8)
