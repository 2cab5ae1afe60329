"""Reconstruction of images by the autoencoder."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr.diffusion.objective import kl_to_standard_normal, per_example, structural_similarity
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import DISCRIMINATOR, LPIPS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import reconstructed
from jaxcxr.models.classifier import batch_norms
from jaxcxr.models.vae import normalize, sample_posterior, split_moments

Term = Callable[[StableDiffusion, jax.Array, jax.Array], jax.Array]
PERCEPTUAL: dict[str, Term] = {
    "ssim": lambda networks, reconstruction, image: 1 - structural_similarity(reconstruction, image),
    "lpips": lambda networks, reconstruction, image: networks.lpips(reconstruction, image),
    "features": lambda networks, reconstruction, image: networks.lpips(reconstruction, image, calibrated=False),
}
"""Perceptual terms by name: (networks, reconstruction, image), images (B, H, W, C) in [−1, 1] -> (B,)."""

ADVERSARIAL = "adversarial"
_LAST = "vae.decoder.conv_out.kernel"
_MOST, _LEAST = 1e4, 1e-4  # of the adversarial term's own weight, and beside the norm that it is divided by


def further(config: ConfigDict) -> tuple[str, ...]:
    """The networks that the terms of a config need."""
    terms = config.objective.perceptual
    return ((LPIPS,) if {"lpips", "features"} & set(terms) else ()) + ((DISCRIMINATOR,) if ADVERSARIAL in terms else ())


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """Reconstruction + KL + perceptual terms + an adversarial one (Rombach et al. 2022, arXiv 2112.10752, section 3.1).

    With the reduction `sum` the error and the perceptual terms are summed over pixels, as published autoencoders have
    it: there the KL term weighs so many times less. `features` is LPIPS whose channels all count 1.

    Raises:
      UserError: a term or the reduction is unknown, or the batch is in parts and there is an adversarial term.
    """
    objective, terms = config.objective, dict(config.objective.perceptual)
    for term in terms:
        if term not in (*PERCEPTUAL, ADVERSARIAL):
            known = ", ".join((*PERCEPTUAL, ADVERSARIAL))
            raise UserError(f"config.objective.perceptual.{term}: no such term; there are {known}")
    if objective.reduction not in ("mean", "sum"):
        raise UserError(f"config.objective.reduction={objective.reduction!r}: may be mean or sum")
    if ADVERSARIAL in terms and config.accumulation > 1:
        raise UserError(
            f"config.accumulation={config.accumulation}: is 1 with an adversarial term, whose weight and whose"
            " discriminator's norms are of the whole batch"
        )
    adversarial = terms.pop(ADVERSARIAL, None)

    def errors(networks: StableDiffusion, reconstruction: jax.Array, image: jax.Array) -> dict[str, jax.Array]:
        pixels = image[0].size if objective.reduction == "sum" else 1
        found = {"reconstruction": per_example(objective.error, reconstruction, image)}
        found |= {name: PERCEPTUAL[name](networks, reconstruction.astype(jnp.float32), image) for name in terms}
        weighted = {name: terms.get(name, 1.0) * value for name, value in found.items()}
        return {**found, "error": pixels * sum(weighted.values())}

    def loss(parameters, batch, keys):
        networks = pipeline.with_parameters(parameters)
        vae = networks.vae
        image = normalize(batch["image"], vae.config.in_channels)
        mean, logvar = split_moments(vae.encode(image))
        latents = sample_posterior(mean, logvar, keys)
        reconstruction = vae.decode(latents)
        found = errors(networks, reconstruction, image) | {"kl": kl_to_standard_normal(mean, logvar)}
        total = found.pop("error") + objective.kl_weight * found["kl"]
        if adversarial is not None:

            def error_of(made: jax.Array) -> jax.Array:
                return errors(networks, made, image)["error"].mean()

            losses = _adversarial(pipeline, parameters, latents, reconstruction, image, error_of)
            total = total + adversarial * losses["weight"] * losses["generator"] + losses["discriminator"]
            found |= losses
        return total, {name: term.mean() for name, term in found.items()}

    return loss


def _adversarial(
    pipeline: StableDiffusion,
    parameters: Mapping[str, Any],
    latents: jax.Array,
    reconstruction: jax.Array,
    image: jax.Array,
    error_of: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """The adversarial losses of the autoencoder and of the discriminator, (B,) each, and the first one's weight.

    The discriminator's is a hinge (Lim & Ye 2017, arXiv 1705.02894). The first has no gradient at the discriminator and
    the second none at the autoencoder, so one update serves both. The `weight` is that of Esser et al. 2021, arXiv
    2012.09841, equation 7: the norm of the error's gradient at the decoder's last kernel over that of the first loss.
    Batch norms take the batch's own statistics.
    """

    def answers(images: jax.Array, learning: bool) -> jax.Array:
        names = {name: value for name, value in parameters.items() if name.startswith(f"{DISCRIMINATOR}.")}
        own = names if learning else jax.lax.stop_gradient(names)
        network = pipeline.with_parameters({**parameters, **own}).discriminator
        for norm in batch_norms(network).values():
            norm.learning = True
        return network(images).astype(jnp.float32)

    def mean(values: jax.Array) -> jax.Array:
        return values.mean(axis=(1, 2, 3))

    def decoded(kernel: jax.Array) -> jax.Array:
        fixed = {**jax.lax.stop_gradient(dict(parameters)), _LAST: kernel}
        return pipeline.with_parameters(fixed).vae.decode(jax.lax.stop_gradient(latents))

    made, pull = jax.vjp(decoded, jax.lax.stop_gradient(parameters[_LAST]))
    slopes = (jax.grad(error_of)(made), jax.grad(lambda x: -answers(x, False).mean())(made))
    of_error, of_adversarial = (jnp.linalg.norm(pull(slope.astype(made.dtype))[0].ravel()) for slope in slopes)
    real, fake = answers(image, True), answers(jax.lax.stop_gradient(reconstruction), True)
    return {
        "generator": -mean(answers(reconstruction, False)),
        "discriminator": 0.5 * (mean(jax.nn.relu(1 - real)) + mean(jax.nn.relu(1 + fake))),
        "weight": jax.lax.stop_gradient(jnp.clip(of_error / (of_adversarial + _LEAST), 0, _MOST)),
    }


METHOD = Method(
    networks=("vae",),
    reads=("image",),
    trains=rf"(vae|{DISCRIMINATOR})\..*",
    make_loss=make_loss,
    make_sheet=reconstructed,
    of_images=True,
    cached=False,
    caption="Validation images above their reconstructions",
    further=further,
)
