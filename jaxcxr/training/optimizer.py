"""The optimizer, from its section of the run config."""

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
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) behind clipping by global norm (0: no clipping)."""
    adamw = optax.adamw(
        learning_rate(config, steps), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
