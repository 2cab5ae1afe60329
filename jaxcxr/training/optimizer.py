"""The optimizer, from its section of the run config."""

import math
import re
from collections.abc import Collection
from typing import Any

import jax
import optax
import optax.contrib
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
    momentum; Lion Chen et al. 2023, arXiv 2302.06675; schedule-free AdamW Defazio et al. 2024, arXiv 2405.15682, whose
    averaged weights (`schedule_free_average`) take the place of the moving average. All decay weights by
    `weight_decay` times the learning rate.

    Raises:
      UserError: an unknown optimizer, schedule or dtype, or rates that are not (pattern, factor).
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"config.optimizer.name={config.name!r}: may be {', '.join(OPTIMIZERS)}")
    if config.mu_dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.optimizer.mu_dtype={config.mu_dtype!r}: may be float32 or bfloat16")
    if config.mu_dtype != "float32" and config.name not in ("adamw", "lion"):
        raise UserError(f"config.optimizer.mu_dtype={config.mu_dtype!r}: {config.name} keeps no first moment")
    rate = learning_rate(config, steps)
    optimizer = OPTIMIZERS[config.name](config, rate)
    if config.rates:
        optimizer = optax.chain(optimizer, _scale_by_name(config.rates))
    if config.name == "schedule_free":
        # It counts steps from 1, what it wraps from 0; a step's weight in the average is of the rate that it took.
        optimizer = optax.contrib.schedule_free(optimizer, lambda count: rate(count - 1), b1=config.b1)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optimizer)


def _adamw(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps, "mu_dtype": config.mu_dtype}
    return optax.adamw(rate, **moments, weight_decay=config.weight_decay)


def _lion(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(rate, b1=config.b1, b2=config.b2, mu_dtype=config.mu_dtype, weight_decay=config.weight_decay)


def _adafactor(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    # Decay after the rate has been applied would not follow it.
    return optax.chain(
        optax.adafactor(None, multiply_by_parameter_scale=False),
        optax.add_decayed_weights(-config.weight_decay),
        optax.scale_by_learning_rate(rate, flip_sign=False),
    )


def _rms(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW without momentum, which schedule-free averaging stands in for."""
    return optax.chain(
        optax.scale_by_rms(decay=config.b2, eps=config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "schedule_free": _rms}


def schedule_free_average(opt_state: Any, parameters: Any) -> Any:
    """The weights to evaluate, of a schedule-free optimizer's state; None of another's."""

    def found(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=found) if found(node)]
    return optax.contrib.schedule_free_eval_params(states[0], parameters) if states else None


def check_rates(rates: Any, names: Collection[str]) -> None:
    """Raises UserError for a pattern of `config.rates` that no parameter of the networks has as its name."""
    for pattern, _ in _patterns(rates):
        if not any(map(pattern.fullmatch, names)):
            raise UserError(
                f"config.optimizer.rates: {pattern.pattern!r} is no parameter's whole name;"
                r" that of a network is like r'text_encoder\..*'"
            )


def _patterns(rates: Any) -> list[tuple[re.Pattern, float]]:
    try:
        patterns = [(re.compile(pattern), float(factor)) for pattern, factor in rates]
        if not all(0 <= factor < math.inf for _, factor in patterns):
            raise ValueError("a factor is 0 or more")
        return patterns
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"config.optimizer.rates={rates!r}: give (pattern, factor) pairs ({error})") from error


def _scale_by_name(rates: Any) -> optax.GradientTransformation:
    """Multiplies the updates of parameters, by full name, by the factor of the first pattern that fits the name."""
    patterns = _patterns(rates)

    def factor(name: str) -> float:
        return next((each for pattern, each in patterns if pattern.fullmatch(name)), 1.0)

    return optax.stateless(lambda updates, _: {name: factor(name) * value for name, value in updates.items()})
