"""Noise schedules, read from diffusers' `scheduler_config.json`.

Every number here is float32 and is computed once, on the host, with the roundings PyTorch makes, so that
`alphas_cumprod` equals diffusers' bit for bit (within 2e-7 of it after zero-SNR rescaling).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.diffusion import scheduler_classes
from jaxcxr.diffusion.scheduler_classes import FILE
from jaxcxr.errors import UserError

_Beta = Annotated[float, Meta(ge=1e-7, lt=1)]  # less is lost in float32, beside 1
_MOST_TIMESTEPS = 10_000
_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
_OURS = ("class_name", "undrawable")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete diffusion: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 − ᾱ_t) ε, t = 0 … T − 1 (Ho et al. 2020, arXiv 2006.11239).

    The fields are those of diffusers' `DDIMScheduler` and so are their defaults, but for the last two.

    Attributes:
      class_name: the class of diffusers that the config file is for.
      undrawable: why the file asks for a sampler that there is none of here; None if it does not.
    """

    num_train_timesteps: Annotated[int, Meta(ge=2, le=_MOST_TIMESTEPS)] = 1000
    beta_start: _Beta = 0.0001
    beta_end: _Beta = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[_Beta, ...] | None = None
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    set_alpha_to_one: bool = True
    steps_offset: Annotated[int, Meta(ge=0, le=_MOST_TIMESTEPS)] = 0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    class_name: str = "DDIMScheduler"
    undrawable: str | None = None

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"{key}={getattr(self, key)!r:.100} is not supported; it may be {allowed}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            count = len(self.trained_betas)
            raise UserError(f"trained_betas has {count} values; num_train_timesteps is {self.num_train_timesteps}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Reads a diffusers scheduler config of a known class; keys that the class has not are left aside, as it does.

        A schedule that can be trained with but not drawn is read too: see `require_drawable`.

        Raises:
          UserError: the noise process is not supported, or a value is not allowed, naming key and value.
        """
        return parsing.convert(scheduler_classes.fields(config), cls, FILE)

    def require_drawable(self) -> None:
        """Raises UserError if the file asks for a sampler that there is none of here; training needs none."""
        if self.undrawable:
            raise UserError(
                f'{FILE}: {self.undrawable}; to draw by DDIM, write "_class_name": "DDIMScheduler", "clip_sample":'
                " false and this base's betas there"
            )

    def for_previews(self) -> "Schedule":
        """The schedule to draw a run's pictures by: DDIM's, whatever sampler the file asks for."""
        return dataclasses.replace(self, class_name="DDIMScheduler", undrawable=None) if self.undrawable else self

    @property
    def notice(self) -> str | None:
        """A line that says so where another sampler draws than the file's; None if it is the same."""
        if self.class_name == "DDIMScheduler":
            return None
        return f"scheduler: {self.class_name} in {FILE}; DDIM draws here, with its betas and settings"

    def to_config(self) -> dict[str, Any]:
        """The `scheduler_config.json` from which diffusers builds the same `DDIMScheduler`."""
        ours = {key: value for key, value in dataclasses.asdict(self).items() if key not in _OURS}
        return {"_class_name": "DDIMScheduler", "_diffusers_version": "0.35.0", **ours, "thresholding": False}

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

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The timesteps that a sampler of `num_steps` visits, int32 (num_steps,), from noise to image."""
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"--steps {num_steps}: this checkpoint's scheduler has 1 to {total} steps")
        steps: np.ndarray
        if self.timestep_spacing == "linspace":
            steps = np.linspace(0, total - 1, num_steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            steps = (np.arange(num_steps) * (total // num_steps))[::-1] + self.steps_offset
        else:
            # Of the sum of rounded parts one more may be left, for 61 steps say: a timestep of -1.
            steps = np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1
        if steps[0] >= total:
            raise UserError(
                f"--steps {num_steps}: this checkpoint's scheduler, with its steps_offset of {self.steps_offset},"
                f" would begin at timestep {steps[0]} of {total}; ask for fewer"
            )
        return steps.astype(np.int32)


def changed_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A `scheduler_config.json` with some keys changed: of its own class, or of DDIM's where that has no such key.

    Args:
      config: the file; empty for DDIM's defaults.
      changes: the keys to change.

    Raises:
      UserError: a key is unknown, or its value is not allowed.
    """
    schedule = Schedule.from_config(config)
    if config and changes.keys() <= scheduler_classes.known_keys(schedule.class_name):
        changed = scheduler_classes.given(config) | dict(changes)
        Schedule.from_config(changed)
        return changed
    schedule.require_drawable()
    known = scheduler_classes.known_keys("DDIMScheduler")
    if unknown := sorted(map(str, changes.keys() - known)):
        raise UserError(f"{FILE}: unknown key {unknown[0]!r:.100}; it may be {', '.join(sorted(known))}")
    updated = Schedule.from_config(
        {key: getattr(schedule, key) for key in known if hasattr(schedule, key)} | dict(changes)
    )
    updated.require_drawable()
    return updated.to_config()


def add_noise(alphas_cumprod: jax.Array, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Draws x_t from x_0: float32 (B, …) at int timesteps (B,)."""
    signal, sigma = _signal_and_sigma(alphas_cumprod, timesteps, sample.ndim)
    return signal * sample + sigma * noise


def velocity(alphas_cumprod: jax.Array, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """v = sqrt(ᾱ) ε − sqrt(1 − ᾱ) x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""
    signal, sigma = _signal_and_sigma(alphas_cumprod, timesteps, sample.ndim)
    return signal * noise - sigma * sample


def _signal_and_sigma(alphas_cumprod: jax.Array, timesteps: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
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
