"""Sampling of latent consistency models: Luo et al. 2023, arXiv 2310.04378, algorithm 3."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import ClipRange, Sampler, Settings, normal
from jaxcxr.diffusion.schedule import Beta, BetaSchedule
from jaxcxr.errors import UserError

_SIGMA_DATA = 0.5


def boundary(timesteps: Any, timestep_scaling: float = 10.0) -> tuple[Any, Any]:
    """What is kept of x_t and what share x_0 has in a consistent prediction (equation 9), of the shape of `timesteps`.

    At timestep 0 it is x_t itself.
    """
    scaled = timesteps * timestep_scaling
    squared = scaled**2 + _SIGMA_DATA**2
    return _SIGMA_DATA**2 / squared, scaled / squared**0.5


@dataclasses.dataclass(frozen=True)
class LCM(Settings):
    """Each call predicts the image; all but the last are noised again to the next level."""

    scheduler: ClassVar[str] = "LCMScheduler"

    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: ClipRange = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    timestep_scaling: float = 10.0
    rescale_betas_zero_snr: bool = False

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        if self.thresholding:
            self.refuse("thresholding", "it is for images, not for latents; set it to false")
        original = self.original_inference_steps
        if not 1 <= original <= self.num_train_timesteps:
            self.refuse("original_inference_steps", f"it may be 1 to {self.num_train_timesteps}")
        if not 1 <= num_steps <= original:
            raise UserError(f"--steps {num_steps}: LCMScheduler has 1 to {original} steps (original_inference_steps)")
        trained = (np.arange(1, original + 1) * (self.num_train_timesteps // original) - 1)[::-1]
        timesteps = trained[np.floor(np.linspace(0, original, num_steps, endpoint=False)).astype(int)]
        levels = grid.levels_of_alphas(np.append(self.alphas_cumprod()[timesteps], 1.0))
        self.require_signal(levels)
        kept, share = boundary(timesteps, self.timestep_scaling)
        coefficients = {"level": levels[:-1], "next": levels[1:], "clean": share, "x": kept}

        def step(x, output, c, keys, carry):
            clean, _ = self.read(x, output, *c["level"])
            if self.clip_sample:
                clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
            denoised = c["clean"] * clean + c["x"] * x
            return c["next"][0] * denoised + c["next"][1] * normal(keys, x), carry

        return Sampler(timesteps.astype(np.int32), levels, coefficients, step).since(begin)
