"""Which timesteps and noise levels a sampler visits, as diffusers' schedulers space them."""

import numpy as np

from jaxcxr.diffusion.samplers.base import Settings, Spacing
from jaxcxr.errors import UserError


def spaced(settings: Settings, spacing: Spacing, num_steps: int) -> np.ndarray:
    """Timesteps of DDIM, DDPM and PNDM: int64 (num_steps,), from noise to image.

    Lin et al. 2023, arXiv 2305.08891, table 2.

    Raises:
      UserError: the scheduler has no so many.
    """
    total = _checked(settings, num_steps)
    steps: np.ndarray
    if spacing == "linspace":
        steps = np.linspace(0, total - 1, num_steps).round()[::-1]
    elif spacing == "leading":
        steps = (np.arange(num_steps) * (total // num_steps))[::-1] + settings.steps_offset
    else:
        steps = trailing(total, total, num_steps)
    return _within(settings, steps.astype(np.int64), num_steps)


def spaced_unrounded(settings: Settings, spacing: Spacing, num_steps: int) -> np.ndarray:
    """Timesteps of the Euler family: float32 (num_steps,); those of linspace are not whole numbers."""
    if spacing == "linspace":
        total = _checked(settings, num_steps)
        return np.linspace(0, total - 1, num_steps, dtype=np.float32)[::-1]
    return spaced(settings, spacing, num_steps).astype(np.float32)


def spaced_without_end(settings: Settings, spacing: Spacing, num_steps: int, last: int) -> np.ndarray:
    """Timesteps of the multistep solvers: int64 (num_steps,), of num_steps + 1 points below `last` less the lowest."""
    total = _checked(settings, num_steps)
    steps: np.ndarray
    if spacing == "linspace":
        steps = np.linspace(0, last - 1, num_steps + 1).round()[::-1][:-1]
    elif spacing == "leading":
        steps = (np.arange(num_steps + 1) * (last // (num_steps + 1)))[::-1][:-1] + settings.steps_offset
    else:
        steps = trailing(last, total, num_steps)
    return _within(settings, steps.astype(np.int64), num_steps)


def trailing(last: int, total: int, num_steps: int) -> np.ndarray:
    """Timesteps from `last` - 1 down in equal parts of `total`.

    Of a sum of rounded parts one more may be left, for 61 steps say: a timestep of -1, which diffusers visits too.
    """
    return np.round(np.arange(last, 0, -total / num_steps)[:num_steps]) - 1


def floored(alphas_cumprod: np.ndarray, zero_snr: bool) -> np.ndarray:
    """ᾱ (T,) whose last value, where it was rescaled to zero, is the 2⁻²⁴ that keeps σ/α finite."""
    return np.append(alphas_cumprod[:-1], np.float32(2**-24)) if zero_snr else alphas_cumprod


def ratios(alphas_cumprod: np.ndarray) -> np.ndarray:
    """σ/α of every timestep, float32 (T,), rounded as diffusers rounds it."""
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def levels_of_ratios(of: np.ndarray) -> np.ndarray:
    """α and σ of a variance-preserving process, float64 (n, 2), from σ/α (n,)."""
    of = of.astype(np.float64)
    alpha = 1 / np.sqrt(of**2 + 1)
    return np.stack([alpha, of * alpha], axis=1)


def levels_of_alphas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """α and σ, float64 (n, 2), from ᾱ (n,)."""
    bar = np.asarray(alphas_cumprod, np.float64)
    return np.sqrt(np.stack([bar, 1 - bar], axis=1))


def karras(lowest: float, highest: float, num_steps: int) -> np.ndarray:
    """Noise levels of Karras et al. 2022, arXiv 2206.00364, equation 5, with ρ = 7: float64 (num_steps,), falling."""
    ramp = np.linspace(0, 1, num_steps)
    return (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7


def exponential(lowest: float, highest: float, num_steps: int) -> np.ndarray:
    """Noise levels in equal steps of their logarithm; float64 (num_steps,), descending."""
    return np.exp(np.linspace(np.log(highest), np.log(lowest), num_steps))


def beta(lowest: float, highest: float, num_steps: int) -> np.ndarray:
    """Noise levels at quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173); float64 (num_steps,)."""
    import scipy.stats

    return lowest + scipy.stats.beta.ppf(1 - np.linspace(0, 1, num_steps), 0.6, 0.6) * (highest - lowest)


SPREADS = {"use_karras_sigmas": karras, "use_exponential_sigmas": exponential, "use_beta_sigmas": beta}
"""By diffusers' key: (lowest, highest, number) -> levels that take the place of the timesteps' own."""


def spread(settings: Settings):
    """The spread that a config asks for, or None.

    Raises:
      UserError: it asks for two.
    """
    asked = [key for key in SPREADS if getattr(settings, key, False)]
    if len(asked) > 1:
        settings.refuse(asked[0], f"{asked[1]} is set too; set one of them")
    return SPREADS[asked[0]] if asked else None


def timesteps_of_ratios(of: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Where `table` (T,) has the ratios `of` (n,): timesteps, float64 (n,), interpolated in the logarithm."""
    logs, wanted = np.log(table), np.log(np.maximum(of, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def _checked(settings: Settings, num_steps: int) -> int:
    total = settings.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise UserError(f"--steps {num_steps}: this checkpoint's scheduler has 1 to {total} steps")
    return total


def _within(settings: Settings, steps: np.ndarray, num_steps: int) -> np.ndarray:
    if steps[0] >= settings.num_train_timesteps or steps[-1] < 0:
        raise UserError(
            f"--steps {num_steps}: this checkpoint's scheduler, with its steps_offset of {settings.steps_offset}, would"
            f" visit timestep {steps[0] if steps[-1] >= 0 else steps[-1]} of {settings.num_train_timesteps};"
            " ask for fewer"
        )
    return steps
