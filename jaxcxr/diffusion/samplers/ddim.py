"""DDIM: Song et al. 2021, arXiv 2010.02502, equation 12."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import ClipRange, Sampler, Settings, Spacing, normal


@dataclasses.dataclass(frozen=True)
class DDIM(Settings):
    """Deterministic at `eta` 0; with DDPM's variance at 1, which diffusers takes as an argument of the pipeline."""

    scheduler: ClassVar[str] = "DDIMScheduler"

    clip_sample: bool = True
    set_alpha_to_one: bool = True
    thresholding: bool = False
    clip_sample_range: ClipRange = 1.0
    timestep_spacing: Spacing = "leading"
    rescale_betas_zero_snr: bool = False

    def sampler(self, num_steps: int, begin: int = 0, *, eta: float = 0.0) -> Sampler:
        """See `Settings.sampler`. A step leads `T // num_steps` timesteps back, whatever the spacing."""
        if self.thresholding:
            self.refuse("thresholding", "it is for images, not for latents; set it to false")
        timesteps = grid.spaced(self, self.timestep_spacing, num_steps)
        bar = self.alphas_cumprod().astype(np.float64)
        following = timesteps - self.num_train_timesteps // num_steps
        here = bar[timesteps]
        after = np.where(following >= 0, bar[np.maximum(following, 0)], 1.0 if self.set_alpha_to_one else bar[0])
        std = eta * np.sqrt(np.maximum((1 - after) / (1 - here) * (1 - here / after), 0))
        coefficients = {
            "level": grid.levels_of_alphas(here),
            "clean": np.sqrt(after),
            "noise": np.sqrt(np.maximum(1 - after - std**2, 0)),
            "std": std,
        }

        def step(x, output, c, keys, carry):
            clean, noise = self.read(x, output, *c["level"])
            if self.clip_sample:
                clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
            x = c["clean"] * clean + c["noise"] * noise
            return (x + c["std"] * normal(keys, x) if eta else x), carry

        levels = np.concatenate([coefficients["level"], [[1.0, 0.0]]])
        self.require_signal(levels)
        return Sampler(timesteps.astype(np.int32), levels, coefficients, step).since(begin)
