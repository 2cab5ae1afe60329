"""Heun's method, of second order: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import ClipRange, Sampler, Settings, Spacing
from jaxcxr.diffusion.samplers.euler import initial_scale, sigmas
from jaxcxr.diffusion.schedule import Beta


@dataclasses.dataclass(frozen=True)
class Heun(Settings):
    """n steps make 2n − 1 calls: each but the last is corrected by the slope at its end."""

    scheduler: ClassVar[str] = "HeunDiscreteScheduler"

    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: ClipRange = 1.0
    timestep_spacing: Spacing = "linspace"

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        timesteps, ratios = sigmas(self, self.timestep_spacing, grid.ratios(self.alphas_cumprod()), num_steps)
        calls = np.repeat(np.arange(num_steps), 2)[1:]  # 0, 1, 1, 2, 2, …
        corrects = np.arange(len(calls)) % 2 == 1
        ratios = np.append(ratios, np.float32(0)).astype(np.float64)
        here, after = ratios[calls], ratios[np.where(corrects, calls, calls + 1)]
        before = ratios[np.where(corrects, calls - 1, calls)]
        levels = grid.levels_of_ratios(np.append(here, 0.0))
        coefficients = {
            "level": levels[:-1],
            "slope": 1 / here,
            "distance": after - before,
            "alpha": grid.levels_of_ratios(after)[:, 0],
            "corrects": corrects,
        }

        def step(x, output, c, keys, carry):
            start, first = carry  # x / α at the step's begin, and the slope there
            clean, _ = self.read(x, output, *c["level"])
            if self.clip_sample:
                clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
            scaled = x / c["level"][0]
            slope = (scaled - clean) * c["slope"]
            start = jnp.where(c["corrects"], start, scaled)
            used = jnp.where(c["corrects"], (first + slope) / 2, slope)
            return c["alpha"] * (start + c["distance"] * used), (start, slope)

        def init(x):
            return jnp.zeros_like(x), jnp.zeros_like(x)

        scale = initial_scale(self.timestep_spacing, levels)
        return Sampler(timesteps[calls], levels, coefficients, step, init, scale).since(2 * begin)
