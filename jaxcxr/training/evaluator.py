"""Evaluation of a run during training: a validation loss, a sheet of pictures and metrics of generated images, with the
same noise each time."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr import methods
from jaxcxr.data.loader import Batches
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import Loss, Validation
from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.feed import open_batches
from jaxcxr.training.generated import Generated
from jaxcxr.training.step import example_keys, weighted_mean, with_mean_weight


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
        self._images = validation.images if validation else 0
        method, shown = methods.method(config), None
        if method.make_validation:
            validation_of = method.make_validation(pipeline, config)
        else:
            validation_of = Validation(lambda *given: (loss(*given)[0], {}), lambda shown: {})

        @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh))
        def mean_loss(parameters, batch, key):
            errors, shown = validation_of.loss(parameters, batch, example_keys(key, batch))
            return weighted_mean(errors, with_mean_weight(batch)), shown

        self._loss, self._measure = mean_loss, validation_of.measure
        if method.of_images and validation:
            rows = np.arange(min(8, config.batch_size))  # the same on all processes
            shown = open_batches(config, "validate", tokenizer, rows=rows, shuffle=False).batch(0)
        if shown is not None or not method.of_images:
            self._draw = method.make_sheet(pipeline, config, mesh, shown)
        if config.evaluation.every:
            self._generated = Generated(pipeline, config, mesh)

    def validate(self, parameters: Mapping[str, jax.Array]) -> dict[str, float]:
        """The mean loss over the validation batches, each under its own fixed key, and what the method measures.

        A method measures an image once, also where the batches have more rows than the split has images.
        """
        key = jax.random.key(self._config.seed)
        losses, shown = [], []
        for index, own_rows in enumerate(self._batches):
            batch = meshes.to_global(own_rows, self._mesh, self._config.batch_size)
            loss, arrays = self._loss(parameters, batch, jax.random.fold_in(key, index))
            losses.append(loss)
            shown.append(arrays)
        whole = {name: np.concatenate([np.asarray(part[name]) for part in shown])[: self._images] for name in shown[0]}
        mean = float(np.mean([np.asarray(loss) for loss in losses], dtype=np.float32))
        return {"validation_loss": mean, **self._measure(whole)}

    def compare(self, parameters: Mapping[str, jax.Array]) -> dict[str, float]:
        """The metrics of `config.evaluation`, of generated images against validation images."""
        return self._generated(parameters)

    def picture(self, parameters: Mapping[str, jax.Array]) -> np.ndarray:
        """A sheet of pictures, uint8 (H, W, C)."""
        return self._draw(parameters)
