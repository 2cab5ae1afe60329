"""Noise schedules, read from diffusers' `scheduler_config.json`.

Every number here is float32 and is computed once, on the host, with the roundings PyTorch makes, so that
`alphas_cumprod` equals diffusers' bit for bit (within 2e-7 of it after zero-SNR rescaling).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.diffusion import scheduler_classes
from jaxcxr.diffusion.scheduler_classes import FILE
from jaxcxr.errors import UserError

MOST_TIMESTEPS = 10_000
Beta = Annotated[float, Meta(ge=1e-7, lt=1)]  # less is lost in float32, beside 1
Timesteps = Annotated[int, Meta(ge=2, le=MOST_TIMESTEPS)]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete diffusion: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 − ᾱ_t) ε, t = 0 … T − 1 (Ho et al. 2020, arXiv 2006.11239).

    The fields are what training needs of a scheduler config; how a sampler draws is in `jaxcxr.diffusion.samplers`.
    """

    num_train_timesteps: Timesteps = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[Beta, ...] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            count = len(self.trained_betas)
            raise UserError(f"trained_betas has {count} values; num_train_timesteps is {self.num_train_timesteps}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Reads a diffusers scheduler config of a known class; keys that the class has not are left aside, as it does.

        Raises:
          UserError: the noise process is not supported, or a value is not allowed, naming key and value.
        """
        return parsing.convert(scheduler_classes.fields(config), cls, FILE)

    def betas(self) -> np.ndarray:
        """β_t, float32 (T,)."""
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float32)
        steps = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas = _torch_linspace(self.beta_start, self.beta_end, steps)
        elif self.beta_schedule == "scaled_linear":
            betas = _torch_linspace(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
        else:  # squaredcos_cap_v2: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17
            bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            betas = np.asarray([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], np.float32)
        return _zero_terminal_snr(betas) if self.rescale_betas_zero_snr else betas

    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t, float32 (T,).

        Raises:
          UserError: the betas leave nothing of an image before the last timestep.
        """
        bar = _cumprod(np.float32(1) - self.betas())
        if not (np.isfinite(bar).all() and (bar[:-1] > 0).all()):
            raise UserError(
                f"{FILE}: beta_start, beta_end or trained_betas are too large; noise alone is left too early"
            )
        return bar


def add_noise(alphas_cumprod: jax.Array, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Draws x_t from x_0: float32 (B, …) at int timesteps (B,)."""
    signal, sigma = levels(alphas_cumprod, timesteps, sample.ndim)
    return signal * sample + sigma * noise


def levels(alphas_cumprod: jax.Array, timesteps: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """α and σ at int timesteps (B,), float32, with `ndim` axes to broadcast against (B, …)."""
    alpha = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps].reshape((-1,) + (1,) * (ndim - 1))
    return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def _torch_linspace(start: float, end: float, steps: int) -> np.ndarray:
    """`torch.linspace` in float32: it counts from both ends towards the middle."""
    first, last = np.float32(start), np.float32(end)
    step = np.float32((last - first) / np.float32(steps - 1))
    index = np.arange(steps, dtype=np.float32)
    # PyTorch fuses the multiplication and the addition: one rounding, which float64 gives.
    upward = np.float64(first) + np.float64(step) * index
    downward = np.float64(last) - np.float64(step) * (steps - 1 - index)
    return np.where(index < steps // 2, upward, downward).astype(np.float32)


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    """`torch.cumprod` of float32 on a CPU, which accumulates in float64."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Rescales β so that ᾱ_{T−1} = 0 (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    bar = root**2
    return np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
