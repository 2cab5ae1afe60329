"""Sheets of pictures that show what a run has learnt."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr import requests
from jaxcxr.data import tokens
from jaxcxr.diffusion.samplers import BY_CLASS
from jaxcxr.generate import default_size, initial_noise, latent_shape, make_generate, to_bytes, unconditional_states
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import compiler_options
from jaxcxr.models.vae import reconstruction
from jaxcxr.parallel import mesh as meshes

Draw = Callable[[Mapping[str, jax.Array]], np.ndarray]
"""Parameters by full name -> a sheet, uint8 (H, W, C) of one or three channels."""

Pictures = Callable[..., np.ndarray]
"""(parameters by full name, a prompt for each picture, noise float32 (B, h, w, C)) -> uint8 (B, H, W, C). What else
`generate.Batch` has, images and masks to edit, is given by name."""


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, H, W, C) -> one picture, `columns` across, row by row."""
    rows = -(-len(pictures) // columns)
    pictures = np.pad(pictures, ((0, rows * columns - len(pictures)), (0, 0), (0, 0), (0, 0)))
    height, width, channels = pictures.shape[1:]
    placed = pictures.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return placed.reshape(rows * height, columns * width, channels)


def prompted(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh, batch: None = None) -> Draw:
    """Pictures of the fixed prompts, a row a prompt, the same noise in every row."""
    samples, pictures = config.samples, make_pictures(pipeline, config, mesh)
    texts = [text for text in samples.prompts for _ in range(samples.per_prompt)]
    noise = np.concatenate([noise_of(pipeline, config.seed, range(samples.per_prompt))] * len(samples.prompts))

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        return tile(pictures(parameters, texts, noise), samples.per_prompt)

    return draw


def noise_of(pipeline: StableDiffusion, seed: int, numbers: Sequence[int]) -> np.ndarray:
    """x_T of the pictures of these numbers, float32 (B, h, w, C)."""
    shape = latent_shape(pipeline, default_size(pipeline))
    return np.stack([initial_noise(seed, number, shape) for number in numbers])


def make_pictures(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh) -> Pictures:
    """Draws pictures as `config.samples` says, spread over the mesh where their number allows it."""
    samples = config.samples
    scheduler = pipeline.scheduler_config()["_class_name"]
    name = samples.sampler or ("" if scheduler in BY_CLASS else "ddim")
    if name and not samples.sampler and jax.process_index() == 0:
        print(f"samples: drawn by DDIM, as {scheduler} cannot be sampled; config.samples.sampler may name another")
    sampler = pipeline.sampler(name).sampler(samples.steps)
    generate = make_generate(pipeline, sampler, mesh, config.attention)

    @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh))
    def pictures(parameters, batch, keys):
        first = unconditional_states(pipeline, parameters) if means.shares_first else None
        return generate(parameters, batch, keys, first)

    means = requests.conditions(requests.Request("any"), samples.guidance)  # of one prompt

    def draw(
        parameters: Mapping[str, jax.Array], texts: Sequence[str], noise: np.ndarray, **edited: np.ndarray
    ) -> np.ndarray:
        ids = tokens.encode(pipeline.tokenizer, texts, tokens.length(pipeline.tokenizer))
        batch = {"ids": ids[:, None], "weights": np.tile(means.weights, (len(texts), 1)), "noise": noise}
        batch |= edited
        if len(texts) % mesh.size == 0:
            batch = jax.device_put(batch, meshes.batch_sharding(mesh))
        drawn = pictures(parameters, batch, jax.random.split(jax.random.key(0), len(texts)))
        return to_bytes(drawn, config.data.channels)

    return draw


def reconstructed(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Draw:
    """Validation images above their reconstructions from the posterior's mean."""
    images = batch["image"]

    @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh))
    def reconstruct(parameters):
        vae = pipeline.with_parameters(parameters).vae
        return jnp.clip(reconstruction(vae, images) / 2 + 0.5, 0, 1)

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        return tile(np.concatenate([images, to_bytes(reconstruct(parameters), images.shape[-1])]), len(images))

    return draw
