"""The moving average of the weights that learn."""

from typing import Any

import jax
import jax.numpy as jnp


def update(average: Any, parameters: Any, step: jax.Array, decay: float) -> Any:
    """Moves `average` towards `parameters` after update number `step` (0 is the first); float32 trees.

    The decay warms up as (1 + step) / (10 + step), so that early averages are not the initial weights
    (the rule of tf.train.ExponentialMovingAverage, which diffusers' EMAModel shares).
    """
    step = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, parameters)
