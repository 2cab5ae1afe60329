"""From prompts to pictures with a pipeline's three networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcxr.data import tokens
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.diffusion.sampling import Sampler, sample
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.parallel import mesh as meshes

Generate = Callable[[Any, jax.Array | np.ndarray, jax.Array | np.ndarray, jax.Array], jax.Array]
"""(parameters, input_ids (B, L), noise (B, h, w, C), keys (B,)) -> pictures, float32 (B, H, W, C) in [0, 1]."""


def make_generate(
    pipeline: StableDiffusion, sampler: Sampler, guidance: float, mesh: Mesh, attention: str = "auto"
) -> Generate:
    """The generation of one batch, to be compiled.

    Args:
      pipeline: the networks, whose parameters may be shapes only.
      sampler: the steps.
      guidance: of Classifier-Free Diffusion Guidance; 1 is none.
      mesh: the devices it runs on.
      attention: as of `models.compute.specialize`.
    """
    pipeline.require_text_alone()
    pipeline = pipeline.specialized(attention=attention, remat="none", platform=mesh.devices.flat[0].platform)
    empty = tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer))

    def generate(parameters, input_ids, noise, keys):
        networks = pipeline.with_parameters(parameters)
        states = networks.text_encoder(input_ids)
        nothing = jnp.broadcast_to(networks.text_encoder(jnp.asarray(empty)), states.shape)
        denoise = classifier_free(networks.unet, states, nothing, guidance)
        latents = sample(denoise, sampler, noise, keys)
        image = networks.vae.decode(latents / networks.vae.config.scaling_factor).astype(jnp.float32)
        return jnp.clip(image / 2 + 0.5, 0, 1)

    return meshes.within(mesh, generate)


def latent_shape(pipeline: StableDiffusion, size: int) -> tuple[int, int, int]:
    """(h, w, C) of the latents of pictures of side `size`.

    Raises:
      UserError: the autoencoder draws none of that side.
    """
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    if size < 1 or size % factor:
        raise UserError(f"pictures of {size} pixels: this autoencoder wants a multiple of {factor}")
    return size // factor, size // factor, pipeline.unet.config.in_channels


def initial_noise(seed: int, index: int, shape: tuple[int, int, int]) -> np.ndarray:
    """x_T of picture number `index` of a job, float32 `shape`; it depends on nothing but these."""
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape))


def to_gray(pictures: jax.Array | np.ndarray) -> np.ndarray:
    """uint8 (B, H, W) of pictures (B, H, W, C) in [0, 1]; the channels of a gray picture agree and are averaged."""
    return np.round(np.asarray(pictures, np.float32).mean(axis=-1) * 255).astype(np.uint8)
