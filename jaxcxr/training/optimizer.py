"""The optimizer, from its section of the run config."""

import re
from typing import Any

import optax
from ml_collections import ConfigDict

from jaxcxr.errors import UserError


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up to `config.learning_rate`, then constant or a cosine to zero at `steps`.

    Raises:
      UserError: `config.schedule` is unknown.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise UserError(f"config.optimizer.schedule={config.schedule!r}: may be constant or cosine")
    # The first update is at 1 / warmup of the peak, not at 0, which would waste it.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of `config.name` behind clipping by global norm (0: no clipping), with `config.rates` last.

    AdamW is Loshchilov & Hutter 2019, arXiv 1711.05101; Adafactor Shazeer & Stern 2018, arXiv 1804.04235, without
    momentum; Lion Chen et al. 2023, arXiv 2302.06675. All decay weights by `weight_decay` times the learning rate.

    Raises:
      UserError: an unknown optimizer or schedule, or rates that are not (pattern, factor).
    """
    rate, decay = learning_rate(config, steps), config.weight_decay
    if config.name == "adamw":
        optimizer = optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=decay)
    elif config.name == "lion":
        optimizer = optax.lion(rate, b1=config.b1, b2=config.b2, weight_decay=decay)
    elif config.name == "adafactor":
        # Decay after the rate has been applied would not follow it.
        optimizer = optax.chain(
            optax.adafactor(None, multiply_by_parameter_scale=False),
            optax.add_decayed_weights(-decay),
            optax.scale_by_learning_rate(rate, flip_sign=False),
        )
    else:
        raise UserError(f"config.optimizer.name={config.name!r}: may be adamw, adafactor or lion")
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optimizer, *([_scale_by_name(config.rates)] if config.rates else []))


def _scale_by_name(rates: Any) -> optax.GradientTransformation:
    """Multiplies the updates of parameters, by full name, by the factor of the first pattern that fits the name."""
    try:
        patterns = [(re.compile(pattern), float(factor)) for pattern, factor in rates]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"config.optimizer.rates={rates!r}: give (pattern, factor) pairs ({error})") from error

    def factor(name: str) -> float:
        return next((each for pattern, each in patterns if pattern.fullmatch(name)), 1.0)

    return optax.stateless(lambda updates, _: {name: factor(name) * value for name, value in updates.items()})
