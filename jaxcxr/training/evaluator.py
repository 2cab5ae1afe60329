"""Evaluation of a run during training: a validation loss and a sheet of pictures, with the same noise each time."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr import requests
from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches
from jaxcxr.diffusion.samplers import BY_CLASS
from jaxcxr.generate import initial_noise, latent_shape, make_generate, to_gray, unconditional_states
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import compiler_options
from jaxcxr.models.vae import normalize, split_moments
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.feed import open_batches
from jaxcxr.training.objectives import Loss
from jaxcxr.training.step import example_keys


class Evaluator:
    """Evaluates weights on the validation split, by the run's own loss and by eye.

    The training loss of diffusion is flat and noisy, because timestep and noise decide most of it; with both
    fixed, as here, the loss of two moments of a run can be compared.
    """

    def __init__(
        self,
        pipeline: StableDiffusion,
        loss: Loss,
        config: ConfigDict,
        mesh: Mesh,
        tokenizer: Any,
        validation: Batches | None,
    ):
        """Without `validation`, this process's rows of the split in its own order, only prompts can be drawn."""
        self._config, self._mesh = config, mesh
        self._batches = [validation.batch(step) for step in range(config.eval_batches)] if validation else []
        self._loss = jax.jit(
            lambda parameters, batch, key: loss(parameters, batch, example_keys(key, batch))[0],
            compiler_options=compiler_options(mesh),
        )
        if config.objective.name == "diffusion":
            self._draw = _prompted(pipeline, config, mesh)
        elif validation:
            rows = np.arange(min(8, config.batch_size))  # the same on all processes
            some = open_batches(config, "validate", tokenizer, rows=rows, shuffle=False).batch(0)
            self._draw = _reconstructed(pipeline, some["image"], mesh)

    def validate(self, parameters: Mapping[str, jax.Array]) -> dict[str, float]:
        """The mean loss over the validation batches, each under its own fixed key."""
        key = jax.random.key(self._config.seed)
        losses = []
        for index, own_rows in enumerate(self._batches):
            batch = meshes.to_global(own_rows, self._mesh, self._config.batch_size)
            losses.append(self._loss(parameters, batch, jax.random.fold_in(key, index)))
        return {"validation_loss": float(np.mean([np.asarray(loss) for loss in losses], dtype=np.float32))}

    def picture(self, parameters: Mapping[str, jax.Array]) -> np.ndarray:
        """A sheet of pictures, uint8 (H, W)."""
        return self._draw(parameters)


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, H, W) -> one picture, `columns` across, row by row."""
    rows = -(-len(pictures) // columns)
    pictures = np.pad(pictures, ((0, rows * columns - len(pictures)), (0, 0), (0, 0)))
    height, width = pictures.shape[1:]
    return pictures.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _prompted(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh):
    """Pictures of the fixed prompts, a row a prompt, the same noise in every row."""
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

    shape = latent_shape(pipeline, config.data.size)
    ids = tokens.encode(pipeline.tokenizer, samples.prompts, tokens.length(pipeline.tokenizer))
    ids = np.repeat(ids, samples.per_prompt, axis=0)
    noise = np.stack([initial_noise(config.seed, index, shape) for index in range(samples.per_prompt)])
    noise = np.concatenate([noise] * len(samples.prompts))
    keys = jax.random.split(jax.random.key(0), len(noise))
    means = requests.conditions(requests.Request(samples.prompts[0]), samples.guidance)  # of any one prompt
    batch = {"ids": ids[:, None], "weights": np.tile(means.weights, (len(noise), 1)), "noise": noise}

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        return tile(to_gray(pictures(parameters, batch, keys)), samples.per_prompt)

    return draw


def _reconstructed(pipeline: StableDiffusion, images: np.ndarray, mesh: Mesh):
    """Validation images above their reconstructions from the posterior's mean."""

    @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh))
    def reconstruct(parameters):
        vae = pipeline.with_parameters(parameters).vae
        mean, _ = split_moments(vae.encode(normalize(images, vae.config.in_channels)))
        return jnp.clip(vae.decode(mean).astype(jnp.float32) / 2 + 0.5, 0, 1)

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        return tile(np.concatenate([images[..., 0], to_gray(reconstruct(parameters))]), len(images))

    return draw
