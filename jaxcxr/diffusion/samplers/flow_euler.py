"""Euler's method along straight paths (Lipman et al. 2023, arXiv 2210.02747).

Levels are shifted as in Esser et al. 2024, arXiv 2403.03206, equation 23.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, normal
from jaxcxr.errors import UserError


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler(Settings):
    """x = (1 − σ) x_0 + σ ε; the network is given T σ and predicts ε − x_0."""

    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    prediction_types: ClassVar[tuple[str, ...]] = ("flow_prediction",)

    prediction_type: str = "flow_prediction"
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`. The lowest σ is shifted twice, as in diffusers."""
        for key in ("use_dynamic_shifting", "invert_sigmas", "shift_terminal"):
            if getattr(self, key):
                self.refuse(key, "it is not supported; remove it")
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"--steps {num_steps}: this checkpoint's scheduler has 1 to {total} steps")
        ends = self.shifted(np.asarray([1, 1 / total], np.float32))
        sigma = self.shifted(np.linspace(float(ends[0]), float(ends[1]), num_steps))
        if (spread := grid.spread(self)) is not None:
            sigma = spread(sigma[-1], sigma[0], num_steps)
        sigma = np.append(sigma, 0.0).astype(np.float32)
        levels = np.stack([1 - sigma.astype(np.float64), sigma], axis=1)

        def step(x, output, c, keys, carry):
            clean, noise = self.read(x, output, *c["level"])
            if self.stochastic_sampling:
                noise = normal(keys, x)
            return c["next"][0] * clean + c["next"][1] * noise, carry

        coefficients = {"level": levels[:-1], "next": levels[1:]}
        return Sampler(sigma[:-1] * np.float32(total), levels, coefficients, step).since(begin)

    def shifted(self, sigma: np.ndarray) -> np.ndarray:
        """s σ / (1 + (s − 1) σ)."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)
