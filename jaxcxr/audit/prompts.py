"""Prompts that a model may have learnt by heart: how far each of them moves the U-Net's prediction."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.data import tokens
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.diffusion.samplers import DDIM
from jaxcxr.errors import UserError
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.extractors.extractor import digest
from jaxcxr.evaluation.kept import keep, one_by_one
from jaxcxr.generate import default_size, latent_shape, require_text
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import specialize
from jaxcxr.parallel import mesh as meshes

MARKER = re.compile(r"_{3,}")
"""What stands in MIMIC-CXR's reports for what was taken out."""
PER_SHARD = 64


def stripped(text: str) -> str:
    """A text without its markers."""
    return " ".join(MARKER.sub(" ", text).split())


def conditional_noise(
    pipeline: StableDiffusion,
    prompts: Sequence[str],
    folder: Path,
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """How far each prompt moves the prediction while an image is drawn of it, float32 (N,): the mean over the steps of
    ‖ε(x_t, prompt) − ε(x_t, ∅)‖, the norm over all of a latent (Wen et al. 2024, arXiv 2407.21720, equation 4).

    A prompt that is tied to one image moves it far. No image is decoded or compared. Every prompt starts from the same
    noise; x_t is sampled by DDIM with guidance.

    Args:
      pipeline: a U-Net and a text encoder; an autoencoder's config gives the latents' shape.
      prompts: N texts.
      folder: where norms are kept.
      steps: of DDIM.
      guidance: with which x_t is sampled.
      batch_size: prompts at once, of all devices of a process together.
      seed: of the noise.

    Raises:
      UserError: the checkpoint is not of text alone, or as of `kept.keep`.
    """
    require_text(pipeline)
    if not prompts:
        return np.empty(0, np.float32)
    mesh = meshes.own_mesh()
    noise = np.asarray(jax.random.normal(jax.random.key(seed), latent_shape(pipeline, default_size(pipeline))))
    # Without the autoencoder, whose parameters nothing here needs.
    platform = mesh.devices.flat[0].platform
    used = StableDiffusion({name: pipeline.networks[name] for name in ("unet", "text_encoder")}, pipeline.files)
    ready = StableDiffusion(
        {name: specialize(each, platform=platform) for name, each in used.networks.items()}, used.files
    )
    compute = functools.partial(_norms, ready, _sampler(pipeline), steps, guidance, noise)
    run = InBatches(meshes.within(mesh, compute), used.parameters(), batch_size, mesh)
    ids = tokens.encode(pipeline.tokenizer, list(prompts), tokens.length(pipeline.tokenizer))

    def of(rows: slice) -> Mapping[str, np.ndarray]:
        return {"norm": np.concatenate(list(run(ids[rows])))}

    values = {name: np.asarray(value) for name, value in used.parameters().items()}
    how = np.array([steps, guidance, seed]), np.asarray(pipeline.schedule.alphas_cumprod())
    name = digest(values | {"ids": ids, "how": how[0], "alphas": how[1]})
    return keep(folder / name, len(prompts), PER_SHARD, one_by_one(of))["norm"]


def _sampler(pipeline: StableDiffusion) -> DDIM:
    settings = pipeline.sampler("ddim")
    if not isinstance(settings, DDIM):
        raise UserError("this checkpoint's scheduler cannot be sampled by DDIM; leave out --checkpoint")
    return settings


def _norms(
    pipeline: StableDiffusion,
    settings: DDIM,
    steps: int,
    guidance: float,
    noise: np.ndarray,
    parameters: Mapping[str, jax.Array],
    ids: jax.Array,
) -> jax.Array:
    """(B,)"""
    networks, sampler, count = pipeline.with_parameters(parameters), settings.sampler(steps), len(ids)
    empty = jnp.asarray(tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer)))
    states = networks.text_encoder(jnp.concatenate([jnp.broadcast_to(empty, ids.shape), ids]))
    weights, keys = classifier_free(guidance), jax.random.split(jax.random.key(0), count)  # DDIM draws nothing
    calls = jax.tree.map(
        lambda values: np.asarray(values, np.float32 if values.dtype == np.float64 else values.dtype),
        (sampler.timesteps, sampler.levels[:-1], sampler.coefficients),
    )

    def step(x: jax.Array, call):
        timestep, level, coefficients = call
        twice = jnp.concatenate([x, x])
        outputs = networks.unet(twice, jnp.full(2 * count, timestep), states).astype(jnp.float32)
        _, predicted = settings.read(twice, outputs, *level)
        norm = jnp.sqrt(jnp.square(predicted[count:] - predicted[:count]).sum(axis=(1, 2, 3)))
        mixed = weights[0] * outputs[:count] + weights[1] * outputs[count:]
        return sampler.step(x, mixed, coefficients, keys, ())[0], norm

    start = jnp.broadcast_to(jnp.asarray(noise) * sampler.initial_scale, (count, *noise.shape))
    return jax.lax.scan(step, start, calls)[1].mean(axis=0)
