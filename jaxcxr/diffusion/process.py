"""What a network predicts of a noisy image, for any noising process x = α x_0 + σ ε.

A variance-preserving process has α² + σ² = 1, a flow has α + σ = 1. Training and sampling both read outputs through
`PREDICTIONS`; no sampler knows a prediction type.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

Level = jax.Array | float


class Prediction(NamedTuple):
    """One kind of prediction.

    Attributes:
      read: (x, output, α, σ) -> (x_0, ε), each of x's shape.
      target: (x_0, ε, α, σ) -> the output that a network should give.
    """

    read: Callable[[jax.Array, jax.Array, Level, Level], tuple[jax.Array, jax.Array]]
    target: Callable[[jax.Array, jax.Array, Level, Level], jax.Array]


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(
        lambda x, output, alpha, sigma: ((x - sigma * output) / alpha, output),
        lambda clean, noise, alpha, sigma: noise,
    ),
    "sample": Prediction(
        lambda x, output, alpha, sigma: (output, (x - alpha * output) / sigma),
        lambda clean, noise, alpha, sigma: clean,
    ),
    # Salimans & Ho 2022, arXiv 2202.00512, appendix D: v = α ε − σ x_0
    "v_prediction": Prediction(
        lambda x, output, alpha, sigma: (alpha * x - sigma * output, alpha * output + sigma * x),
        lambda clean, noise, alpha, sigma: alpha * noise - sigma * clean,
    ),
    # Liu et al. 2022, arXiv 2209.03003: the velocity ε − x_0 of a straight path
    "flow_prediction": Prediction(
        lambda x, output, alpha, sigma: (x - sigma * output, x + alpha * output),
        lambda clean, noise, alpha, sigma: noise - clean,
    ),
}
"""By diffusers' `prediction_type`."""


def add_noise(clean: jax.Array, noise: jax.Array, alpha: Level, sigma: Level) -> jax.Array:
    """x = α x_0 + σ ε; levels are scalars or broadcast against (B, H, W, C)."""
    return alpha * clean + sigma * noise
