"""From prompts to pictures with a pipeline's three networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcxr.data import tokens
from jaxcxr.diffusion.guidance import classifier_free, guided
from jaxcxr.diffusion.loop import sample
from jaxcxr.diffusion.samplers import Sampler
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.parallel import mesh as meshes

Generate = Callable[[Any, jax.Array | np.ndarray, jax.Array | np.ndarray, jax.Array], jax.Array]
"""(parameters, input_ids (B, L), noise (B, h, w, C), keys (B,)) -> pictures, float32 (B, H, W, C) in [0, 1].

A picture that has a value that is not finite, itself or its latents, is NaN throughout.
"""


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
        if guidance > 1:
            nothing = jnp.broadcast_to(networks.text_encoder(jnp.asarray(empty)), states.shape)
            denoise = guided(networks.unet, jnp.stack([nothing, states]), classifier_free(guidance))
        else:  # diffusers' convention: none, and one condition is computed
            denoise = guided(networks.unet, states[None], np.ones(1))
        latents = sample(denoise, sampler, noise * sampler.initial_scale, keys)
        image = networks.vae.decode(latents / networks.vae.config.scaling_factor).astype(jnp.float32)
        # Clipping would make black and white of what is infinite.
        finite = jnp.isfinite(latents).all((1, 2, 3)) & jnp.isfinite(image).all((1, 2, 3))
        return jnp.where(finite[:, None, None, None], jnp.clip(image / 2 + 0.5, 0, 1), jnp.nan)

    return meshes.within(mesh, generate)


def latent_shape(pipeline: StableDiffusion, size: int) -> tuple[int, int, int]:
    """(h, w, C) of the latents of pictures of side `size`.

    Raises:
      UserError: the autoencoder draws none of that side, or the U-Net does not denoise its latents alone.
    """
    latents = pipeline.vae.config.latent_channels
    for name in ("in_channels", "out_channels"):
        if (channels := getattr(pipeline.unet.config, name)) != latents:
            what = {9: " (inpainting)", 8: " (editing)"}.get(channels, "") if name == "in_channels" else ""
            raise UserError(
                f"unet/config.json: {name} {channels}{what} is not supported; the autoencoder's latent_channels are"
                f" {latents}, and text-to-image needs the same number; give a text-to-image checkpoint"
            )
    factor = vae_factor(pipeline)
    if size < 1 or size % factor:
        raise UserError(f"pictures of {size} pixels: this autoencoder wants a multiple of {factor}")
    return size // factor, size // factor, latents


def default_size(pipeline: StableDiffusion) -> int:
    """Pixels of a side that the U-Net was trained for.

    Raises:
      UserError: its config does not say, or says that pictures are not square.
    """
    latents = pipeline.unet.config.sample_size
    sides = {latents} if isinstance(latents, int) else set(latents or ())
    if len(sides) != 1:
        raise UserError(f"unet/config.json: sample_size {latents} is not one number; give --size")
    return sides.pop() * vae_factor(pipeline)


def vae_factor(pipeline: StableDiffusion) -> int:
    """Pixels of a picture's side for each of its latents' side."""
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def initial_noise(seed: int, index: int, shape: tuple[int, int, int]) -> np.ndarray:
    """x_T of picture number `index` of a job, float32 `shape`; it depends on nothing but these."""
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape))


def to_gray(pictures: jax.Array | np.ndarray) -> np.ndarray:
    """uint8 (B, H, W) of pictures (B, H, W, C) in [0, 1]; the channels of a gray picture agree and are averaged.

    NaN is black.
    """
    return np.round(np.nan_to_num(np.asarray(pictures, np.float32)).mean(axis=-1) * 255).astype(np.uint8)
