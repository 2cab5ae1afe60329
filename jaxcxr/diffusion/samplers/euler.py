"""Euler's method on the probability-flow equation: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn.

In x = α x_0 + σ ε it is the same step for every process, and DDIM's: x' = α' x_0 + σ' ε.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, Spacing


@dataclasses.dataclass(frozen=True)
class Euler(Settings):
    """Timesteps need not be whole numbers."""

    scheduler: ClassVar[str] = "EulerDiscreteScheduler"

    interpolation_type: str = "linear"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_spacing: Spacing = "linspace"
    timestep_type: str = "discrete"
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        if self.interpolation_type != "linear":
            self.refuse("interpolation_type", "it may be 'linear'")
        if self.timestep_type != "discrete":
            self.refuse("timestep_type", "it may be 'discrete'")
        table = grid.ratios(grid.floored(self.alphas_cumprod(), self.rescale_betas_zero_snr))
        timesteps, ratios = sigmas(self, self.timestep_spacing, table, num_steps, self.sigma_min, self.sigma_max)
        levels = grid.levels_of_ratios(np.append(ratios, np.float32(0)))
        # The result is x / α, in which diffusers has this sampler's x.
        final = [1.0, table[0] if self.final_sigmas_type == "sigma_min" else 0.0]

        def step(x, output, c, keys, carry):
            clean, noise = self.read(x, output, *c["level"])
            return c["next"][0] * clean + c["next"][1] * noise, carry

        coefficients = {"level": levels[:-1], "next": np.concatenate([levels[1:-1], [final]])}
        scale = initial_scale(self.timestep_spacing, levels)
        return Sampler(timesteps, levels, coefficients, step, initial_scale=scale).since(begin)


def sigmas(
    settings: Settings,
    spacing: Spacing,
    table: np.ndarray,
    num_steps: int,
    lowest: float | None = None,
    highest: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps, float32 (num_steps,), and σ/α there, float32, for the samplers of the Euler family.

    Args:
      settings: perhaps with one of `grid.SPREADS`.
      spacing: of the timesteps.
      table: σ/α of every timestep, (T,).
      num_steps: how many.
      lowest: σ/α that a spread ends at, and `highest`: that it starts at; those of the spaced timesteps if None.
    """
    timesteps = grid.spaced_unrounded(settings, spacing, num_steps)
    found = np.interp(timesteps, np.arange(len(table)), table)
    if (spread := grid.spread(settings)) is not None:
        found = spread(found[-1] if lowest is None else lowest, found[0] if highest is None else highest, num_steps)
        timesteps = grid.timesteps_of_ratios(found, table)
    return timesteps.astype(np.float32), found.astype(np.float32)


def initial_scale(spacing: Spacing, levels: np.ndarray) -> float:
    """Of unit noise: in diffusers x / α begins as σ/α · ε with linspace and trailing, as ε / α with leading."""
    return 1.0 if spacing == "leading" else float(levels[0, 1])
