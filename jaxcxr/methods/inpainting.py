"""Denoising of a masked part under a report: the U-Net sees the mask and what lies outside it beside x_t."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr.diffusion import masks
from jaxcxr.diffusion.editing import with_channels
from jaxcxr.errors import UserError
from jaxcxr.generate import initial_noise, inpainting_channels, latent_shape
from jaxcxr.interop.config_files import NETWORKS, inpainting_inputs
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import diffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import Draw, make_pictures, tile
from jaxcxr.models.vae import normalize


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The loss of `methods.diffusion` over the whole latents, as Stable Diffusion's inpainting model was trained.

    Behind x_t come the mask at the latents' size and the latents of the image with its masked part gray. Each example's
    mask is drawn anew.

    Raises:
      UserError: a kind of mask is unknown.
    """
    kinds = tuple(config.inpainting.masks)
    if unknown := [name for name in kinds if name not in masks.MASKS]:
        raise UserError(f"config.inpainting.masks: has {unknown[0]!r}; it may have {', '.join(masks.MASKS)}")
    if not kinds:
        raise UserError(f"config.inpainting.masks: is empty; give some of {', '.join(masks.MASKS)}")

    def unet_of(networks, batch, keys):
        mask_keys, posterior_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        mask = masks.draw(kinds, batch["image"].shape[1], mask_keys)
        image = normalize(batch["image"], networks.vae.config.in_channels)
        return with_channels(networks.unet, inpainting_channels(networks, image, mask, posterior_keys))

    return diffusion.make_loss(pipeline, config, unet_of)


def painted(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Draw:
    """Validation images with a hole in each, above what is painted there under the prompts of `config.samples`."""
    images, prompts, pictures = batch["image"], config.samples.prompts, make_pictures(pipeline, config, mesh)
    texts = [prompts[number % len(prompts)] for number in range(len(images))]
    side = images.shape[1]
    keys = jax.random.split(jax.random.key(config.seed), len(images))
    mask = np.asarray(masks.draw(tuple(config.inpainting.masks), side, keys)).astype(np.uint8)
    shape = latent_shape(pipeline, side, inpaints=True)
    noise = np.stack([initial_noise(config.seed, number, shape) for number in range(len(images))])
    holes = np.where(mask > 0, 128, images).astype(np.uint8)

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        found = pictures(parameters, texts, noise, image=images, mask=mask)
        return tile(np.concatenate([holes, found]), len(images))

    return draw


METHOD = Method(
    networks=NETWORKS,
    reads=diffusion.METHOD.reads,
    trains=".*",
    make_loss=make_loss,
    make_sheet=painted,
    of_images=True,
    cached=False,
    caption="Validation images with a hole, above what is painted there",
    unet_inputs=inpainting_inputs,
)
