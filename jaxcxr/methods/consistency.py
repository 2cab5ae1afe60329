"""Pictures in few steps: consistency distillation of a model by itself (Luo et al. 2023, arXiv 2310.04378), as adapters
(arXiv 2311.05556): the base that the adapters lie beside is the teacher."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcxr.adaptation import BASE
from jaxcxr.data import tokens
from jaxcxr.diffusion.objective import per_example
from jaxcxr.diffusion.process import PREDICTIONS
from jaxcxr.diffusion.samplers.lcm import boundary
from jaxcxr.diffusion.schedule import add_noise, levels
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import NETWORKS
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.diffusion import METHOD as DIFFUSION
from jaxcxr.methods.diffusion import draw_latents, normal
from jaxcxr.methods.method import Loss, Method


class Draws(NamedTuple):
    """What is random of a batch, an example's of its own key.

    Attributes:
      noise: of x_t, float32 (B, h, w, C).
      timesteps: int32 (B,), of the teacher's steps.
      guidance: the teacher's, float32 (B,).
    """

    noise: jax.Array
    timesteps: jax.Array
    guidance: jax.Array


def draw(config: ConfigDict, shape: tuple[int, ...], num_train_timesteps: int, keys: jax.Array) -> Draws:
    """Draws for the examples of `keys` (B,) with latents of a `shape` (h, w, C)."""
    settings = config.distillation
    noise, time, guidance = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    number = jax.vmap(lambda key: jax.random.randint(key, (), 1, settings.teacher_steps + 1))(time)
    low, high = settings.guidance
    scales = jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(guidance)
    timesteps = number * (num_train_timesteps // settings.teacher_steps) - 1
    return Draws(normal(noise, shape), timesteps, scales)


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The distance of what the student makes of x_t from what it makes of the teacher's next x, a DDIM step on.

    The teacher is guided, at a scale that is drawn for each example. Its step is one of `distillation.teacher_steps` of
    the whole schedule. The second prediction has no gradient.

    Raises:
      UserError: there is no adapter, whose base would be the teacher, or the settings do not fit the schedule.
    """
    schedule, settings = pipeline.schedule, config.distillation
    _check(config, schedule.num_train_timesteps)
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod())
    stride = schedule.num_train_timesteps // settings.teacher_steps
    read = PREDICTIONS[schedule.prediction_type].read
    empty = jnp.asarray(tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer)))

    def loss(parameters, batch, keys):
        student = pipeline.with_parameters(parameters)
        teacher = pipeline.with_parameters(
            {name: parameters.get(BASE + name, value) for name, value in parameters.items()}
        )
        posterior_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        latents = draw_latents(student, batch, posterior_keys)
        drawn = draw(config, latents.shape[1:], schedule.num_train_timesteps, keys)
        states = batch["states"] if "states" in batch else student.text_encoder(batch["input_ids"])
        states = jax.lax.stop_gradient(states)
        nothing = jnp.broadcast_to(jax.lax.stop_gradient(student.text_encoder(empty)), states.shape)

        def consistent(x, timesteps):
            clean, _ = read(x, student.unet(x, timesteps, states), *levels(alphas_cumprod, timesteps, x.ndim))
            kept, share = (each[:, None, None, None] for each in boundary(timesteps.astype(jnp.float32)))
            return kept * x + share * clean

        x = add_noise(alphas_cumprod, latents, drawn.noise, drawn.timesteps)
        here = levels(alphas_cumprod, drawn.timesteps, x.ndim)
        guided = [jnp.stack(read(x, teacher.unet(x, drawn.timesteps, given), *here)) for given in (nothing, states)]
        clean, noise = guided[0] + drawn.guidance[:, None, None, None] * (guided[1] - guided[0])
        following = jnp.maximum(drawn.timesteps - stride, 0)
        alpha, sigma = levels(alphas_cumprod, following, x.ndim)
        target = jax.lax.stop_gradient(consistent(jax.lax.stop_gradient(alpha * clean + sigma * noise), following))
        return per_example(config.objective.error, consistent(x, drawn.timesteps), target), {}

    return loss


def _check(config: ConfigDict, num_train_timesteps: int) -> None:
    settings = config.distillation
    if not config.lora.rank or config.trainable:
        raise UserError(
            "config.method='consistency': learns adapters alone, whose base is the teacher; set config.lora.rank, and"
            f" config.trainable='' (it is {config.trainable!r})"
        )
    if not 1 <= settings.teacher_steps <= num_train_timesteps:
        raise UserError(
            f"config.distillation.teacher_steps={settings.teacher_steps}: may be 1 to {num_train_timesteps}"
        )
    low, high = settings.guidance if len(settings.guidance) == 2 else (np.nan, np.nan)
    if not 1 <= low <= high < np.inf:
        raise UserError(
            f"config.distillation.guidance={settings.guidance}: give two scales, 1 or more, the lower first"
        )


METHOD = Method(
    networks=NETWORKS,
    reads=DIFFUSION.reads,
    trains=r"unet\..*",
    make_loss=make_loss,
    make_sheet=DIFFUSION.make_sheet,
    of_images=False,
    cached=True,
    of_base=True,
)
