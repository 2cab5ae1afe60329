"""Denoising of latents under a report."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcxr.data import tokens
from jaxcxr.diffusion.objective import (
    TIMESTEP_BIASES,
    denoising_target,
    min_snr_weights,
    per_example,
    timestep_weights,
)
from jaxcxr.diffusion.schedule import add_noise
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import NETWORKS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import prompted
from jaxcxr.models.vae import normalize, sample_posterior, split_moments

TIMESTEP_BUCKETS = 4
"""Of equal width, for which the loss is logged apart: at little noise and at much it says different things."""


UNet = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x_t (B, h, w, C), timesteps (B,), text states (B, L, D)) -> an output for each x_t."""


def make_loss(
    pipeline: StableDiffusion,
    config: ConfigDict,
    unet_of: Callable[[StableDiffusion, Mapping[str, jax.Array], jax.Array], UNet] = lambda networks, *_: networks.unet,
) -> Loss:
    """Denoising of the autoencoder's latents under the report's encoding, some reports dropped for guidance.

    `unet_of` makes of the networks, a batch and a key for each example the network that denoises: one may see more than
    x_t. `offset_noise` adds one normal number to all of a channel's noise (Guttenberg 2023, "Diffusion with offset
    noise"); `input_perturbation` disturbs the noise that the network sees, not that it is to find (Ning et al. 2023,
    arXiv 2301.11706); `min_snr_gamma` is of `min_snr_weights`, and `timestep_bias` of `timestep_weights`.
    """
    objective = config.objective
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
        unet = unet_of(networks, batch, _other(noise_keys, 3))
        output = unet(add_noise(alphas_cumprod, latents, shown, timesteps), timesteps, states)
        target = denoising_target(schedule.prediction_type, alphas_cumprod, latents, noise, timesteps)
        errors = per_example(objective.error, output, target)
        if objective.min_snr_gamma:
            gamma = objective.min_snr_gamma
            errors = errors * min_snr_weights(schedule.prediction_type, gamma, alphas_cumprod, timesteps)
        return errors, {"by_timestep": _by_timestep(errors, timesteps, schedule.num_train_timesteps)}

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


METHOD = Method(NETWORKS, ("image", "input_ids"), ".*", make_loss, prompted, of_images=False, cached=True)
