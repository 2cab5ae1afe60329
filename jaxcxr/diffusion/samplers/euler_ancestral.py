"""Euler's method with noise added after each step (Crowson 2022, k-diffusion's `sample_euler_ancestral`)."""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, Spacing, normal
from jaxcxr.diffusion.samplers.euler import initial_scale, sigmas


@dataclasses.dataclass(frozen=True)
class EulerAncestral(Settings):
    """A step leads below the next level, and fresh noise back up to it."""

    scheduler: ClassVar[str] = "EulerAncestralDiscreteScheduler"
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    timestep_spacing: Spacing = "linspace"
    rescale_betas_zero_snr: bool = False

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        table = grid.ratios(grid.floored(self.alphas_cumprod(), self.rescale_betas_zero_snr))
        timesteps, ratios = sigmas(self, self.timestep_spacing, table, num_steps)
        ratios = np.append(ratios, np.float32(0)).astype(np.float64)
        levels = grid.levels_of_ratios(ratios)
        here, after, alpha = ratios[:-1], ratios[1:], levels[1:, 0]
        up = np.sqrt(after**2 * (here**2 - after**2)) / here
        down = np.sqrt(after**2 - up**2)
        coefficients = {"level": levels[:-1], "clean": alpha, "noise": alpha * down, "std": alpha * up}

        def step(x, output, c, keys, carry):
            clean, noise = self.read(x, output, *c["level"])
            return c["clean"] * clean + c["noise"] * noise + c["std"] * normal(keys, x), carry

        scale = initial_scale(self.timestep_spacing, levels)
        return Sampler(timesteps, levels, coefficients, step, initial_scale=scale).since(begin)
