"""DDPM's ancestral sampling: Ho et al. 2020, arXiv 2006.11239, equation 7, on any number of steps."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import ClipRange, Sampler, Settings, Spacing, normal

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


@dataclasses.dataclass(frozen=True)
class DDPM(Settings):
    """Adds noise after each step but that at timestep 0."""

    scheduler: ClassVar[str] = "DDPMScheduler"

    variance_type: str = "fixed_small"
    clip_sample: bool = True
    thresholding: bool = False
    clip_sample_range: ClipRange = 1.0
    timestep_spacing: Spacing = "leading"
    rescale_betas_zero_snr: bool = False

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        if self.thresholding:
            self.refuse("thresholding", "it is for images, not for latents; set it to false")
        if self.variance_type not in VARIANCES:
            self.refuse("variance_type", f"it may be {', '.join(VARIANCES)}")
        timesteps = grid.spaced(self, self.timestep_spacing, num_steps)
        here = self.alphas_cumprod()[timesteps].astype(np.float64)
        after = np.append(here[1:], 1.0)
        beta = 1 - here / after
        variance = np.maximum((1 - after) / (1 - here) * beta, 1e-20)
        if self.variance_type == "fixed_large":
            variance = beta
        coefficients = {
            "level": grid.levels_of_alphas(here),
            "clean": np.sqrt(after) * beta / (1 - here),
            "x": np.sqrt(here / after) * (1 - after) / (1 - here),
            "std": np.sqrt(variance) * (timesteps > 0),
        }

        def step(x, output, c, keys, carry):
            clean, _ = self.read(x, output, *c["level"])
            if self.clip_sample:
                clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
            return c["clean"] * clean + c["x"] * x + c["std"] * normal(keys, x), carry

        levels = np.concatenate([coefficients["level"], [[1.0, 0.0]]])
        self.require_signal(levels)
        return Sampler(timesteps.astype(np.int32), levels, coefficients, step).since(begin)
