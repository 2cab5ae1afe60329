"""Pseudo numerical methods: Liu et al. 2022, arXiv 2202.09778, equations 9 to 13 and algorithm 2."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, Spacing
from jaxcxr.errors import UserError

# Adams–Bashforth weights of this output and the ones before it, by how many there are.
_MULTISTEP = {
    1: (1.0, 0.0, 0.0, 0.0),
    2: (3 / 2, -1 / 2, 0.0, 0.0),
    3: (23 / 12, -16 / 12, 5 / 12, 0.0),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclasses.dataclass
class _Call:
    """One call: the step from `at` to `to` with a combination of outputs."""

    timestep: int  # the network's
    at: int
    to: int
    weights: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)  # of this output and the three kept before it
    of_sum: float = 0.0  # weight of the running sum of a Runge–Kutta step
    adds: float = 0.0  # what this output counts in that sum afterwards
    clears: bool = False  # the sum begins anew
    begins: bool = False  # x is kept as the start of a step
    restarts: bool = False  # the step begins at that start, not at x
    keeps: bool = True  # this output is one of those kept


@dataclasses.dataclass(frozen=True)
class PNDM(Settings):
    """Combines raw outputs first and reads (x_0, ε) off the combination."""

    scheduler: ClassVar[str] = "PNDMScheduler"
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    timestep_spacing: Spacing = "leading"

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`. n steps make n + 1 calls; with Runge–Kutta steps first (at least 4), n + 9.

        Begun in the middle, the first outputs correct a step from another timestep, as in diffusers.
        """
        if begin and not self.skip_prk_steps:
            self.refuse("skip_prk_steps", "its first steps cannot be left out; draw with another sampler")
        ascending = grid.spaced(self, self.timestep_spacing, num_steps)[::-1]
        stride = self.num_train_timesteps // num_steps
        calls = _plms(ascending, stride, begin) if self.skip_prk_steps else _prk(self, ascending, stride)
        highest = max(max(call.at, call.timestep) for call in calls)
        if highest >= self.num_train_timesteps:
            raise UserError(
                f"--steps {num_steps}: PNDMScheduler with timestep_spacing {self.timestep_spacing!r} would use timestep"
                f" {highest} of {self.num_train_timesteps}; ask for another number or use 'leading'"
            )
        bar = self.alphas_cumprod().astype(np.float64)
        last = 1.0 if self.set_alpha_to_one else bar[0]
        to = np.array([call.to for call in calls])
        coefficients = {
            "level": grid.levels_of_alphas(bar[[call.at for call in calls]]),
            "next": grid.levels_of_alphas(np.where(to >= 0, bar[np.maximum(to, 0)], last)),
        }
        for field in ("weights", "of_sum", "adds", "clears", "begins", "restarts", "keeps"):
            coefficients[field] = np.array([getattr(call, field) for call in calls])

        def step(x, output, c, keys, carry):
            start, total, kept = carry
            start = jnp.where(c["begins"], x, start)
            w = c["weights"]
            used = w[0] * output + w[1] * kept[0] + w[2] * kept[1] + w[3] * kept[2] + c["of_sum"] * total
            clean, noise = self.read(jnp.where(c["restarts"], start, x), used, *c["level"])
            total = jnp.where(c["clears"], 0.0, total + c["adds"] * output)
            kept = jnp.where(c["keeps"], jnp.stack([output, kept[0], kept[1]]), kept)
            return c["next"][0] * clean + c["next"][1] * noise, (start, total, kept)

        def init(x):
            return jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((3, *x.shape), x.dtype)

        timesteps = np.array([call.timestep for call in calls], np.int32)
        levels = np.concatenate([grid.levels_of_alphas(bar[timesteps]), [[1.0, 0.0]]])
        return Sampler(timesteps, levels, coefficients, step, init, partial=begin > 0)


def _plms(ascending: np.ndarray, stride: int, begin: int) -> list[_Call]:
    """The calls without Runge–Kutta steps; the first output at the second timestep corrects the first step."""
    listed = np.concatenate([ascending[:-1], ascending[-2:-1], ascending[-1:]])[::-1].tolist()[begin:]
    calls = []
    for number, t in enumerate(listed):
        if number == 1:
            calls.append(_Call(t, t + stride, t, (1 / 2, 1 / 2, 0.0, 0.0), restarts=True, keeps=False))
        else:
            kept = min(max(number, 1), 4)
            calls.append(_Call(t, t, t - stride, _MULTISTEP[kept], begins=number == 0))
    return calls


def _prk(settings: PNDM, ascending: np.ndarray, stride: int) -> list[_Call]:
    """The calls with three Runge–Kutta steps first."""
    if len(ascending) < 4:
        raise UserError(f"--steps {len(ascending)}: PNDMScheduler with skip_prk_steps=false wants 4 steps or more")
    half = stride // 2
    points = np.repeat(ascending[-4:], 2) + np.tile([0, half], 4)
    listed = np.repeat(points[:-1], 2)[1:-1][::-1].tolist()
    calls = []
    for number, t in enumerate(listed):
        place, begin = number % 4, listed[number // 4 * 4]
        call = _Call(t, begin, t - (0 if number % 2 else half), begins=place == 0, restarts=True, keeps=place == 0)
        if place == 3:
            call.weights, call.of_sum, call.clears = (_RUNGE_KUTTA[3], 0.0, 0.0, 0.0), 1.0, True
        else:
            call.adds = _RUNGE_KUTTA[place]
        calls.append(call)
    return calls + [_Call(t, t, t - stride, _MULTISTEP[4]) for t in ascending[:-3][::-1].tolist()]
