"""What is learnt: the losses, as pure float32 functions of network outputs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcxr.diffusion.process import PREDICTIONS
from jaxcxr.diffusion.schedule import levels

PSEUDO_HUBER = 1e-3
ERRORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mse": jnp.square,
    "l1": jnp.abs,
    "huber": lambda difference: optax.huber_loss(difference, delta=1.0),
    "pseudo_huber": lambda difference: jnp.sqrt(jnp.square(difference) + PSEUDO_HUBER**2) - PSEUDO_HUBER,
}
"""Of a difference, element by element. Huber's is half the square up to 1 and straight beyond; the other bends smoothly
at `PSEUDO_HUBER`, which is that of consistency distillation (Song & Dhariwal 2023, arXiv 2310.14189)."""

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
"""Of structural similarity: pixels of the Gaussian window and its width, and what keeps its quotients from 0 / 0."""

TIMESTEP_BIASES = ("none", "earlier", "later")


def denoising_target(
    prediction_type: str, alphas_cumprod: jax.Array, sample: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """What the network should say at x_t: ε, v or x_0, float32 of `sample`'s shape."""
    return PREDICTIONS[prediction_type].target(sample, noise, *levels(alphas_cumprod, timesteps, sample.ndim))


def per_example(error: str, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean error of each example, float32 (B,); `error` is a key of `ERRORS`."""
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return ERRORS[error](difference).mean(axis=tuple(range(1, difference.ndim)))


def min_snr_weights(prediction_type: str, gamma: float, alphas_cumprod: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What each example's squared error counts, float32 (B,), so that none counts more than at an SNR of `gamma`.

    Hang et al. 2023, arXiv 2303.09556, section 3.4: min(SNR, γ) for x_0, over SNR for ε, over SNR + 1 for v. Defined
    at the ends of the schedule too: at an SNR of 0 it is 1 for ε and 0 for v.
    """
    alpha = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps]
    # min(SNR, γ) = α / max(1 − α, α / γ), in which nothing is divided by zero.
    clipped = alpha / jnp.maximum(1 - alpha, alpha / gamma)
    if prediction_type == "epsilon":
        return jnp.minimum(1.0, gamma * (1 - alpha) / jnp.maximum(alpha, jnp.finfo(jnp.float32).tiny))
    if prediction_type == "v_prediction":
        return clipped * (1 - alpha)  # 1 / (SNR + 1) = 1 − α
    return clipped


def timestep_weights(bias: str, multiplier: float, portion: float, total: int) -> np.ndarray:
    """How often each timestep is drawn, float32 (total,), the sum 1.

    With a `bias` of earlier or later (less or more noise) that `portion` of the timesteps is drawn `multiplier` times
    as often as the others, as diffusers' training scripts have it.
    """
    weights, biased = np.ones(total, np.float32), int(portion * total)
    if bias == "earlier":
        weights[:biased] *= multiplier
    elif bias == "later":
        weights[total - biased :] *= multiplier
    return weights / weights.sum()


def structural_similarity(first: jax.Array, second: jax.Array) -> jax.Array:
    """SSIM of pairs of images in [−1, 1], (B, H, W, C) -> (B,), 1 where they are equal.

    Wang et al. 2004, the mean over pixels and channels; `evaluation.metrics.similarity` has it in float64. A side has
    `WINDOW` pixels or more.
    """
    a, b = (each.astype(jnp.float32) / 2 + 0.5 for each in (first, second))
    c1, c2 = K1**2, K2**2
    rows, columns = (gaussian_windows(side).astype(np.float32) for side in first.shape[1:3])

    def blurred(x: jax.Array) -> jax.Array:
        return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return ((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure).mean(axis=(1, 2, 3))


@functools.lru_cache(maxsize=32)
def gaussian_windows(side: int) -> np.ndarray:
    """SSIM's window at each place along an axis where all of it is inside, float64 (side − `WINDOW` + 1, side)."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    matrix = np.zeros((side - WINDOW + 1, side))
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW] = weights / weights.sum()
    return matrix


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each example, summed over its latent, float32 (B,).

    Kingma & Welling 2014, arXiv 1312.6114, appendix B; the reduction is that of diffusers' `kl()`.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(axis=tuple(range(1, mean.ndim)))
