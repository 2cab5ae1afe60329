"""What a run computes: its train step on a mesh, compiled where it runs or planned for hardware that is elsewhere."""

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr import adaptation
from jaxcxr.adaptation import Adaptation
from jaxcxr.data import tokens
from jaxcxr.data.moments import Card
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import LPIPS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.interop.tensors import Tensor
from jaxcxr.methods import make_loss, method
from jaxcxr.methods.method import Loss
from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import rules
from jaxcxr.parallel.gather import gather, rounded, scatter
from jaxcxr.training import text_fit
from jaxcxr.training.augment import make_augment
from jaxcxr.training.model import compute_dtype
from jaxcxr.training.optimizer import check_rates, learning_rate, make_optimizer
from jaxcxr.training.step import State, init_state, make_step


class Program(NamedTuple):
    """A train step with everything that decides how it is compiled; nothing is, yet.

    Attributes:
      step: jitted (state, frozen, batch) -> (state, metrics); the state is donated.
      init: (parameters, key) -> (state, frozen), on the mesh; of arrays on the host no device gets more than its part.
      place: parameters that do not learn, of any precision -> frozen, on the mesh.
      state: shapes of the state, with their shardings.
      frozen: shapes of what does not learn, by name; in the compute dtype where networks round it at once.
      loss: see `methods.method.Loss`.
      adaptation: what learns, and what networks make of it.
    """

    step: Any
    init: Callable[[Any, jax.Array], tuple[State, Any]]
    place: Callable[[Any], dict[str, jax.Array]]
    state: State
    frozen: dict[str, jax.ShapeDtypeStruct]
    loss: Loss
    adaptation: Adaptation

    @property
    def learns(self) -> set[str]:
        """The names of the parameters that learn."""
        return set(self.state["learnt"])


def make_program(config: ConfigDict, pipeline: StableDiffusion, mesh: Mesh) -> Program:
    """The program of a run config for networks (shapes will do) on the devices of a mesh.

    Raises:
      UserError: a value of the config is unknown or does not fit the mesh.
    """
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
    platform, dtype = mesh.devices.flat[0].platform, compute_dtype(config)
    pipeline = pipeline.specialized(attention=config.attention, remat=config.remat, platform=platform)
    loss, tx = meshes.within(mesh, make_loss(pipeline, config)), make_optimizer(config.optimizer, config.steps)
    parameters = pipeline.parameters()
    learning = dataclasses.replace(adaptation.of(config, parameters), of_base=method(config).of_base)
    learnt = jax.eval_shape(learning.start, parameters, jax.random.key(0))
    check_rates(config.optimizer.rates, (*parameters, *learnt))
    _check_learnt(config, parameters, learning, learnt)
    exact = learning.exact | {name for name in parameters if name.startswith(f"{LPIPS}.")}  # it computes in float32

    def kept(name: str, value: Any) -> Any:
        return value if name in exact else rounded(name, value, dtype)

    frozen = jax.eval_shape(
        lambda p: {name: kept(name, value) for name, value in p.items()}, learning.frozen(parameters)
    )
    state = jax.eval_shape(lambda learnt: init_state(learnt, tx), learnt)
    shardings = rules.shard_state(state, config.sharding, config.ema_sharding, config.ema_memory, mesh)
    lie = {**rules.shard(frozen, config.sharding, mesh), **shardings["learnt"]}
    frozen_lie = {name: lie[name] for name in frozen}
    step = make_step(
        loss,
        tx,
        config.ema_decay,
        config.seed,
        augment=make_augment(config),
        expand=learning.expand,
        project=learning.project,
        accumulation=config.accumulation,
        skip_nonfinite=config.skip_nonfinite > 0,
        rate=learning_rate(config.optimizer, config.steps),
        gather=lambda values: gather(values, lie, dtype, exact),
        scatter=lambda gradients: scatter(gradients, lie),
    )
    on_device = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings["average"])

    def step_from_host(state, frozen, batch):
        return step({**state, "average": jax.device_put(state["average"], on_device)}, frozen, batch)

    first_state = jax.jit(lambda learnt: init_state(learnt, tx), out_shardings=shardings, donate_argnums=0)

    def place(values):
        def host(name: str, value: Any) -> np.ndarray:
            array = value.read() if isinstance(value, Tensor) else np.asarray(value)
            return array.astype(frozen[name].dtype, copy=False)

        return {name: meshes.split(host(name, values[name]), lie[name]) for name in frozen}

    def init(parameters, key):
        learnt = learning.start(parameters, key)
        placed = {name: meshes.split(value, lie[name]) for name, value in learnt.items()}
        return first_state(placed), place(parameters)

    return Program(
        step=jax.jit(
            step_from_host if config.ema_memory == "host" else step,
            in_shardings=(shardings, frozen_lie, meshes.batch_sharding(mesh)),
            out_shardings=(shardings, meshes.replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh, gradient=True),
        ),
        init=init,
        place=place,
        state=_shapes(state, shardings),
        frozen=_shapes(frozen, frozen_lie),
        loss=loss,
        adaptation=learning,
    )


def _check_learnt(
    config: ConfigDict, parameters: Collection[str], learning: Adaptation, learnt: Collection[str]
) -> None:
    """Raises UserError where something learns that the method does not train, or does not that starts at random."""
    if idle := [name for name in learnt if not re.fullmatch(method(config).trains, name)]:
        which = f"trainable={config.trainable!r}" if idle[0] in learning.names else ", config.".join(learning.parts)
        raise UserError(
            f"config.{which}: {idle[0]} would learn, which config.method={config.method!r} does not train; it trains"
            f" {method(config).trains}"
        )
    stuck = [name for name in parameters if text_fit.is_fresh(config, name) and name not in learning.names]
    if stuck:
        raise UserError(
            f"config.trainable={config.trainable!r}: leaves out {stuck[0]}, which"
            f" config.model.text_encoder_fit={config.model.text_encoder_fit!r} has start at random; it is to learn"
        )


def _shapes(values: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, shardings)


def batch_shapes(
    config: ConfigDict, pipeline: StableDiffusion, mesh: Mesh, learns: Collection[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as shapes: of images and prompts, or of what stands for them in `config.data.cache`.

    A cache that is not here is taken to be in bfloat16, with the text encoder's states where that does not learn.
    """
    sharding, side, rows = meshes.batch_sharding(mesh), config.data.size, config.batch_size
    fields: dict[str, Callable[[], Any]] = {
        "image": lambda: ((rows, side, side, config.data.channels), jnp.uint8),
        "condition": lambda: ((rows, side, side, pipeline.controlnet.config.conditioning_channels), jnp.uint8),
        "input_ids": lambda: ((rows, tokens.length(pipeline.tokenizer)), jnp.int32),
        "teacher_ids": lambda: ((rows, tokens.length(pipeline.teacher_tokenizer)), jnp.int32),
        "labels": lambda: ((rows, len(pipeline.classifier.config.classes)), jnp.float32),
    }
    fields["label_weights"] = fields["labels"]
    batch = {name: fields[name]() for name in method(config).reads}
    if config.data.cache:
        vae, text = pipeline.vae.config, pipeline.text_encoder.config
        latent = side // vae.vae_scale_factor
        card = Card.read(Path(config.data.cache))
        dtype = jnp.dtype(card.dtype if card else "bfloat16")
        del batch["image"]
        batch["moments"] = ((rows, latent, latent, 2 * vae.latent_channels), dtype)
        if card.origin.text if card else not any(name.startswith("text_encoder.") for name in learns):
            (_, length), _ = batch.pop("input_ids")
            batch["states"] = ((rows, length, text.hidden_size), dtype)
    if config.data.weights:
        batch["weight"] = ((rows,), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*leaf, sharding=sharding) for name, leaf in batch.items()}
