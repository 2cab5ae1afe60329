"""The two things a run can learn, each one loss function of (parameters, batch, key)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcxr.data import tokens
from jaxcxr.diffusion.objective import (
    ERRORS,
    TIMESTEP_BIASES,
    denoising_target,
    kl_to_standard_normal,
    min_snr_weights,
    per_example,
    timestep_weights,
)
from jaxcxr.diffusion.schedule import add_noise
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.vae import normalize, sample_posterior, split_moments

Loss = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters by full name, batch, a key for each example (B,)) -> (mean over the examples, further such means to log).

An example's randomness is of its own key, so that a batch in parts is the batch as a whole.
"""

TIMESTEP_BUCKETS = 4
"""Of equal width, for which the loss is logged apart: at little noise and at much it says different things."""

PERCEPTUAL: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {}
"""Perceptual terms by name: (reconstruction, image), both (B, H, W, C) in [−1, 1] -> (B,)."""


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The loss of `config.objective.name`.

    Raises:
      UserError: the objective, its error or one of its perceptual terms is unknown.
    """
    objective = config.objective
    if objective.error not in ERRORS:
        raise UserError(f"config.objective.error={objective.error!r}: may be {', '.join(ERRORS)}")
    if objective.name == "autoencoder":
        return autoencoder(pipeline, objective)
    if objective.name == "diffusion":
        return diffusion(pipeline, objective)
    raise UserError(f"config.objective.name={objective.name!r}: may be autoencoder or diffusion")


def autoencoder(pipeline: StableDiffusion, objective: ConfigDict) -> Loss:
    """Reconstruction + KL + perceptual terms (Rombach et al. 2022, arXiv 2112.10752, section 3.1 without the GAN)."""
    for term in objective.perceptual:
        if term not in PERCEPTUAL:
            known = ", ".join(PERCEPTUAL) or "none yet"
            raise UserError(f"config.objective.perceptual.{term}: no such term; there are {known}")

    def loss(parameters, batch, keys):
        vae = pipeline.with_parameters(parameters).vae
        image = normalize(batch["image"], vae.config.in_channels)
        mean, logvar = split_moments(vae.encode(image))
        reconstruction = vae.decode(sample_posterior(mean, logvar, keys))
        error = per_example(objective.error, reconstruction, image).mean()
        kl = kl_to_standard_normal(mean, logvar).mean()
        metrics = {"reconstruction": error, "kl": kl}
        total = error + objective.kl_weight * kl
        for term, weight in objective.perceptual.items():
            metrics[term] = PERCEPTUAL[term](reconstruction.astype(jnp.float32), image).mean()
            total = total + weight * metrics[term]
        return total, metrics

    return loss


def diffusion(pipeline: StableDiffusion, objective: ConfigDict) -> Loss:
    """Denoising of the autoencoder's latents under the report's encoding, some reports dropped for guidance.

    `offset_noise` adds one normal number to all of a channel's noise (Guttenberg 2023, "Diffusion with offset noise");
    `input_perturbation` disturbs the noise that the network sees, not that it is to find (Ning et al. 2023, arXiv
    2301.11706); `min_snr_gamma` is of `min_snr_weights`, and `timestep_bias` of `timestep_weights`.
    """
    if objective.timestep_bias not in TIMESTEP_BIASES:
        known = ", ".join(TIMESTEP_BIASES)
        raise UserError(f"config.objective.timestep_bias={objective.timestep_bias!r}: may be {known}")
    schedule = pipeline.schedule
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod())
    often = timestep_weights(
        objective.timestep_bias,
        objective.timestep_bias_multiplier,
        objective.timestep_bias_portion,
        schedule.num_train_timesteps,
    )
    empty = jnp.asarray(tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer)))

    def loss(parameters, batch, keys):
        networks = pipeline.with_parameters(parameters)
        posterior_keys, noise_keys, time_keys, drop_keys = jnp.moveaxis(
            jax.vmap(lambda k: jax.random.split(k, 4))(keys), 1, 0
        )
        latents = draw_latents(networks, batch, posterior_keys)
        shape = latents.shape[1:]

        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, objective.caption_dropout, (1,)))(drop_keys)
        if "states" in batch:  # of a cache; the text encoder does not learn
            states = jnp.where(dropped[..., None], networks.text_encoder(empty), batch["states"])
        else:
            states = networks.text_encoder(jnp.where(dropped, empty, batch["input_ids"]))

        noise = normal(noise_keys, shape)
        if objective.offset_noise:
            level = normal(_other(noise_keys, 1), (1, 1, shape[-1]))
            noise = noise + objective.offset_noise * level
        shown = noise
        if objective.input_perturbation:
            shown = noise + objective.input_perturbation * normal(_other(noise_keys, 2), shape)
        timesteps = jax.vmap(draw_timestep)(time_keys)
        output = networks.unet(add_noise(alphas_cumprod, latents, shown, timesteps), timesteps, states)
        target = denoising_target(schedule.prediction_type, alphas_cumprod, latents, noise, timesteps)
        errors = per_example(objective.error, output, target)
        if objective.min_snr_gamma:
            gamma = objective.min_snr_gamma
            errors = errors * min_snr_weights(schedule.prediction_type, gamma, alphas_cumprod, timesteps)
        return errors.mean(), {"by_timestep": _by_timestep(errors, timesteps, schedule.num_train_timesteps)}

    def draw_timestep(key):
        if objective.timestep_bias == "none":
            return jax.random.randint(key, (), 0, schedule.num_train_timesteps)
        return jax.random.choice(key, schedule.num_train_timesteps, p=often)

    return loss


def _by_timestep(errors: jax.Array, timesteps: jax.Array, count: int) -> jax.Array:
    """(B,) errors -> (TIMESTEP_BUCKETS, 2): each bucket's part of the mean error, and its share of the examples."""
    inside = jax.nn.one_hot(timesteps * TIMESTEP_BUCKETS // count, TIMESTEP_BUCKETS)
    return jnp.stack([inside * errors[:, None], inside], axis=-1).mean(axis=0)


def _other(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, float32 (B, *shape), an example's of its own key; `keys` are (B,)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def draw_latents(networks: StableDiffusion, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
    """A draw of a batch's scaled latents: float32 (B, h, w, latent_channels).

    The batch has `image`, uint8 (B, H, W, 1), or the `moments` that a cache holds in its place.
    """
    vae = networks.vae
    if "moments" in batch:
        moments = batch["moments"]
    else:
        moments = vae.encode(normalize(batch["image"], vae.config.in_channels))
    return sample_posterior(*split_moments(moments), keys) * vae.config.scaling_factor


def measure_scaling_factor(pipeline: StableDiffusion, parameters: Any, images: np.ndarray) -> float:
    """1 / the standard deviation of the latents of uint8 images (N, H, W, 1), which makes theirs 1.

    Rombach et al. 2022, arXiv 2112.10752, appendix G. Rounded to five digits, as configs are read by people.
    """

    @jax.jit
    def latents(parameters, image):
        networks = pipeline.with_parameters(parameters)
        mean, logvar = split_moments(networks.vae.encode(normalize(image, networks.vae.config.in_channels)))
        return sample_posterior(mean, logvar, jax.random.key(0)[None])

    deviation = np.std([np.asarray(latents(parameters, image[None])) for image in images])
    return float(f"{1 / deviation:.5g}")
