"""Denoising under a report and a condition image: a ControlNet learns beside a U-Net that is frozen."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr.diffusion.editing import with_control
from jaxcxr.generate import to_bytes
from jaxcxr.interop.config_files import CONTROLNET, NETWORKS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import diffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import Draw, make_pictures, noise_of, tile


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The loss of `methods.diffusion`, of a U-Net to which the ControlNet adds what it makes of x_t and the condition.

    Zhang et al. 2023, arXiv 2302.05543. A batch has `condition`, uint8 (B, H, W, 3), which is scaled to [0, 1].
    """

    def unet_of(networks, batch, keys):
        return with_control(networks.unet, networks.controlnet, batch["condition"].astype(jnp.float32) / 255)

    return diffusion.make_loss(pipeline, config, unet_of)


def conditioned(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Draw:
    """Condition images above what is drawn under them and the prompts of `config.samples`, in gray where images are."""
    shown, prompts, pictures = batch["condition"], config.samples.prompts, make_pictures(pipeline, config, mesh)
    texts = [prompts[number % len(prompts)] for number in range(len(shown))]
    noise = noise_of(pipeline, config.seed, range(len(shown)))
    above = to_bytes(shown / np.float32(255), config.data.channels)

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        return tile(np.concatenate([above, pictures(parameters, texts, noise, control=shown)]), len(shown))

    return draw


METHOD = Method(
    networks=(*NETWORKS, CONTROLNET),
    reads=(*diffusion.METHOD.reads, "condition"),
    trains=rf"{CONTROLNET}\..*",
    make_loss=make_loss,
    make_sheet=conditioned,
    of_images=True,
    cached=True,
    caption="Condition images above what is drawn under them",
)
