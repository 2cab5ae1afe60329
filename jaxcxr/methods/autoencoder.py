"""Reconstruction of images by the autoencoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr.diffusion.objective import kl_to_standard_normal, per_example, structural_similarity
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import reconstructed
from jaxcxr.models.vae import normalize, sample_posterior, split_moments

PERCEPTUAL: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ssim": lambda reconstruction, image: 1 - structural_similarity(reconstruction, image),
}
"""Perceptual terms by name: (reconstruction, image), both (B, H, W, C) in [−1, 1] -> (B,)."""


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """Reconstruction + KL + perceptual terms (Rombach et al. 2022, arXiv 2112.10752, section 3.1 without the GAN)."""
    objective = config.objective
    for term in objective.perceptual:
        if term not in PERCEPTUAL:
            known = ", ".join(PERCEPTUAL) or "none yet"
            raise UserError(f"config.objective.perceptual.{term}: no such term; there are {known}")

    def loss(parameters, batch, keys):
        vae = pipeline.with_parameters(parameters).vae
        image = normalize(batch["image"], vae.config.in_channels)
        mean, logvar = split_moments(vae.encode(image))
        reconstruction = vae.decode(sample_posterior(mean, logvar, keys))
        error = per_example(objective.error, reconstruction, image)
        kl = kl_to_standard_normal(mean, logvar)
        terms = {"reconstruction": error, "kl": kl}
        total = error + objective.kl_weight * kl
        for term, weight in objective.perceptual.items():
            terms[term] = PERCEPTUAL[term](reconstruction.astype(jnp.float32), image)
            total = total + weight * terms[term]
        return total, {name: term.mean() for name, term in terms.items()}

    return loss


METHOD = Method(
    networks=("vae",),
    reads=("image",),
    trains=".*",
    make_loss=make_loss,
    make_sheet=reconstructed,
    of_images=True,
    cached=False,
    caption="Validation images above their reconstructions",
)
