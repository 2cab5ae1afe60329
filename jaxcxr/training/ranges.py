"""What the numbers of a run config may be, looked at before anything is read or compiled."""

import math
import operator
from collections.abc import Callable

from ml_collections import ConfigDict

from jaxcxr import methods
from jaxcxr.errors import UserError
from jaxcxr.training import loggers, schema

_COUNTED = (
    *("steps", "log_every", "eval_every", "sample_every", "checkpoint_every", "keep", "skip_nonfinite"),
    *("profile.steps", "profile.after", "optimizer.warmup_steps"),
)
"""Of steps, which are int32."""

RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "1 or more",
        lambda value: value >= 1,
        (
            *("steps", "batch_size", "accumulation", "keep"),
            *("samples.per_prompt", "samples.steps", "profile.after", "prior.count"),
        ),
    ),
    (
        "0 or more",
        lambda value: 0 <= value < math.inf,
        (
            *("profile.steps", "skip_nonfinite", "eval_batches", "epochs", "stopping.patience"),
            *("log_every", "eval_every", "sample_every", "checkpoint_every"),
            *("objective.min_snr_gamma", "objective.offset_noise", "objective.input_perturbation"),
            *("objective.kl_weight", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.eps"),
            *("optimizer.weight_decay", "optimizer.clip_norm", "samples.guidance", "data.size"),
        ),
    ),
    ("at most 2^31 - 1", lambda value: value < 2**31, _COUNTED),
    (
        "at most 2^20",
        lambda value: value <= 2**20,
        (
            *("batch_size", "accumulation", "eval_batches", "samples.per_prompt", "samples.steps"),
            *("mesh.data", "mesh.fsdp", "mesh.tensor", "data.size"),
        ),
    ),
    ("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32, ("seed",)),
    (
        "more than 0",
        lambda value: 0 < value < math.inf,
        ("objective.timestep_bias_multiplier", "prior.weight"),
    ),
    (
        "from 0 to 1",
        lambda value: 0 <= value <= 1,
        ("ema_decay", "objective.caption_dropout", "objective.timestep_bias_portion"),
    ),
    ("from 0 to 45", lambda value: 0 <= value <= 45, ("augment.rotation",)),
    ("from 0 to 0.5", lambda value: 0 <= value <= 0.5, ("augment.translation", "augment.brightness")),
    ("0 or more and less than 1", lambda value: 0 <= value < 1, ("optimizer.b1", "optimizer.b2")),
)


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value of a run config that is of a wrong type or out of its range."""
    schema.check(config)
    for allowed, fits, keys in RANGES:
        for key in keys:
            value = operator.attrgetter(key)(config)
            if not fits(value):
                raise UserError(f"config.{key}={value}: may be {allowed}")
    loggers.check(config.loggers)
    method = methods.method(config)
    if config.data.cache and not method.cached:
        raise UserError(
            f"config.data.cache: config.method={config.method!r} trains without a cache; it is for diffusion"
        )
    if config.stopping.patience and not (config.eval_every or config.evaluation.every):
        raise UserError(
            f"config.stopping.patience={config.stopping.patience}: wants config.eval_every or config.evaluation.every"
            " above 0"
        )
    if config.evaluation.every and method.of_images:
        raise UserError(
            f"config.evaluation.every={config.evaluation.every}: config.method={config.method!r} draws nothing from"
            " prompts; set it to 0"
        )
    if config.eval_every and not config.eval_batches:
        raise UserError("config.eval_batches=0: may be 1 or more, or config.eval_every 0")
    if config.sample_every and not method.of_images and not config.samples.prompts:
        raise UserError("config.samples.prompts=(): wants a prompt, or config.sample_every 0")
    for number, prompt in enumerate(config.samples.prompts):
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError(f"config.samples.prompts[{number}]: has half a character, a lone surrogate")
    if config.optimizer.name == "schedule_free" and not config.optimizer.b1:
        raise UserError("config.optimizer.b1=0.0: is more than 0 for schedule_free, which averages by it")
