"""What a run computes: its train step on a mesh, compiled where it runs or planned for hardware that is elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr.data import tokens
from jaxcxr.data.moments import Card
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import rules
from jaxcxr.parallel.gather import gather, scatter
from jaxcxr.training.model import compute_dtype
from jaxcxr.training.objectives import Loss, make_loss
from jaxcxr.training.optimizer import check_rates, make_optimizer
from jaxcxr.training.step import State, init_state, make_step


class Program(NamedTuple):
    """A train step with everything that decides how it is compiled; nothing is, yet.

    Attributes:
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      init: parameters -> state, on the mesh; of arrays on the host no device gets more than its part.
      state: shapes of the state, with their shardings.
      loss: see `objectives.Loss`.
      learns: the names of the parameters that learn.
    """

    step: Any
    init: Callable[[Any], State]
    state: State
    loss: Loss
    learns: set[str]


def make_program(config: ConfigDict, pipeline: StableDiffusion, mesh: Mesh) -> Program:
    """The program of a run config for networks (shapes will do) on the devices of a mesh.

    Raises:
      UserError: a value of the config is unknown or does not fit the mesh.
    """
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
    platform = mesh.devices.flat[0].platform
    pipeline = pipeline.specialized(attention=config.attention, remat=config.remat, platform=platform)
    loss, tx = meshes.within(mesh, make_loss(pipeline, config)), make_optimizer(config.optimizer, config.steps)
    check_rates(config.optimizer.rates, pipeline.parameters())
    learns = rules.select(pipeline.parameters(), config.trainable)
    shapes = jax.eval_shape(lambda p: init_state(p, learns, tx), pipeline.parameters())
    shardings = rules.shard_state(shapes, config.sharding, config.ema_sharding, config.ema_memory, mesh)
    step = make_step(
        loss,
        tx,
        learns,
        config.ema_decay,
        config.seed,
        accumulation=config.accumulation,
        skip_nonfinite=config.skip_nonfinite > 0,
        gather=lambda parameters: gather(parameters, shardings["params"], compute_dtype(config)),
        scatter=lambda gradients: scatter(gradients, shardings["params"]),
    )
    on_device = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings["ema"])

    def step_from_host(state, batch):
        return step({**state, "ema": jax.device_put(state["ema"], on_device)}, batch)

    first_state = jax.jit(lambda p: init_state(p, learns, tx), out_shardings=shardings, donate_argnums=0)

    def init(parameters):
        return first_state({name: meshes.split(value, shardings["params"][name]) for name, value in parameters.items()})

    return Program(
        step=jax.jit(
            step_from_host if config.ema_memory == "host" else step,
            in_shardings=(shardings, meshes.batch_sharding(mesh)),
            out_shardings=(shardings, meshes.replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh, gradient=True),
        ),
        init=init,
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        loss=loss,
        learns=learns,
    )


def batch_shapes(config: ConfigDict, pipeline: StableDiffusion, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as shapes: of images and prompts, or of what stands for them in `config.data.cache`.

    A cache that is not here is taken to be in bfloat16, with the text encoder's states where that does not learn.
    """
    sharding, side, rows = meshes.batch_sharding(mesh), config.data.size, config.batch_size
    length = tokens.length(pipeline.tokenizer)
    batch = {"image": ((rows, side, side, 1), jnp.uint8), "input_ids": ((rows, length), jnp.int32)}
    if config.data.cache:
        vae, text = pipeline.vae.config, pipeline.text_encoder.config
        latent = side // vae.vae_scale_factor
        card = Card.read(Path(config.data.cache))
        dtype = jnp.dtype(card.dtype if card else "bfloat16")
        del batch["image"]
        batch["moments"] = ((rows, latent, latent, 2 * vae.latent_channels), dtype)
        learns = rules.select(pipeline.parameters(), config.trainable)
        if card.origin.text if card else not any(name.startswith("text_encoder.") for name in learns):
            del batch["input_ids"]
            batch["states"] = ((rows, length, text.hidden_size), dtype)
    return {name: jax.ShapeDtypeStruct(*leaf, sharding=sharding) for name, leaf in batch.items()}
