"""UniPC: Zhao et al. 2023, arXiv 2302.04867: a predictor, and a corrector that uses the next call's output."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, Spacing
from jaxcxr.diffusion.samplers.dpm_solver import half_log_snr

_MOST = 3  # order


@dataclasses.dataclass(frozen=True)
class UniPC(Settings):
    """The network sees the predicted x; the corrected one is what the next prediction starts from."""

    scheduler: ClassVar[str] = "UniPCMultistepScheduler"
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample", "flow_prediction")

    solver_order: int = 2
    thresholding: bool = False
    predict_x0: bool = True
    solver_type: Literal["bh1", "bh2", "midpoint", "heun", "logrho"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    timestep_spacing: Spacing = "linspace"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    shift_terminal: float | None = None

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        self._check(num_steps)
        timesteps, levels = self.grid(num_steps)
        orders = [self._order(index, num_steps, begin) for index in range(num_steps)]
        predictor, corrector = [], []
        for index, order in enumerate(orders):
            before = [levels[index - back] for back in range(order)]
            of_x, _, *rest = self._weights(levels[index + 1], before, corrects=False)
            predictor.append([of_x, *rest])
            if index <= begin or index - 1 in self.disable_corrector:
                corrector.append([1.0, 0.0] + [0.0] * (1 + _MOST))
            else:
                before = [levels[index - 1 - back] for back in range(orders[index - 1])]
                corrector.append([0.0, *self._weights(levels[index], before, corrects=True)])
        # The corrector's: of x, of the x that the last prediction started from, of this prediction, of those before it.
        coefficients = {
            "level": levels[:-1],
            "corrector": np.array(corrector),
            "predictor": np.array(predictor),
        }

        def step(x, output, c, keys, carry):
            start, before = carry
            clean, noise = self.read(x, output, *c["level"])
            prediction = clean if self.predict_x0 else noise
            x = jnp.tensordot(c["corrector"], jnp.stack([x, start, prediction, *before]), 1)
            before = jnp.stack([prediction, *before[: _MOST - 1]])
            after = jnp.tensordot(c["predictor"], jnp.stack([x, *before]), 1)
            return after, (x, before)

        def init(x):
            return jnp.zeros_like(x), jnp.zeros((_MOST, *x.shape), x.dtype)

        return Sampler(timesteps, levels, coefficients, step, init).since(begin)

    def grid(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps, int32 (n,), and levels, float64 (n + 1, 2)."""
        table = grid.ratios(grid.floored(self.alphas_cumprod(), self.rescale_betas_zero_snr))
        total = self.num_train_timesteps
        spread = grid.spread(self)
        if self.use_flow_sigmas:
            if spread is not None:
                self.refuse("use_flow_sigmas", "it does not go with karras, exponential or beta sigmas")
            sigma = np.linspace(1, 1 / total, num_steps + 1)[:-1]
            sigma = self.flow_shift * sigma / (1 + (self.flow_shift - 1) * sigma)
            if abs(sigma[0] - 1) < 1e-6:
                sigma[0] -= 1e-6  # log(1 − σ) stays finite
            timesteps = sigma * total
            sigma = np.append(sigma, sigma[-1] if self.final_sigmas_type == "sigma_min" else 0.0)
            sigma = sigma.astype(np.float32).astype(np.float64)
            return timesteps.astype(np.int32), np.stack([1 - sigma, sigma], axis=1)
        timesteps = grid.spaced_without_end(self, self.timestep_spacing, num_steps, total)
        found, last = np.interp(timesteps, np.arange(total), table), float(table[0])
        if spread is not None:
            lowest = table[0] if self.sigma_min is None else self.sigma_min
            highest = table[-1] if self.sigma_max is None else self.sigma_max
            found = spread(float(lowest), float(highest), num_steps)
            timesteps, last = grid.timesteps_of_ratios(found, table), float(found[-1])
            if self.use_karras_sigmas:
                timesteps = timesteps.round()
        ratios = np.append(found, last if self.final_sigmas_type == "sigma_min" else 0.0).astype(np.float32)
        return timesteps.astype(np.int32), grid.levels_of_ratios(ratios)

    def _check(self, num_steps: int) -> None:
        if self.thresholding:
            self.refuse("thresholding", "it is for images, not for latents; set it to false")
        for key in ("use_dynamic_shifting", "shift_terminal"):
            if getattr(self, key):
                self.refuse(key, "it is not supported; remove it")
        if not 1 <= self.solver_order <= _MOST:
            self.refuse("solver_order", "it may be 1, 2 or 3")
        if not self.lower_order_final and self.final_sigmas_type == "zero" and self.solver_order > 1:
            self.refuse("lower_order_final", "final_sigmas_type 'zero' wants true")
        if self.solver_type == "bh1" and self.final_sigmas_type == "zero":
            self.refuse("solver_type", "it wants final_sigmas_type 'sigma_min'")
        if not self.predict_x0 and self.final_sigmas_type == "zero":
            self.refuse("predict_x0", "it wants final_sigmas_type 'sigma_min'")
        if self.use_flow_sigmas != (self.prediction_type == "flow_prediction"):
            self.refuse("use_flow_sigmas", "it goes with prediction_type 'flow_prediction' alone")

    def _order(self, index: int, num_steps: int, begin: int) -> int:
        most = min(self.solver_order, num_steps - index) if self.lower_order_final else self.solver_order
        return min(most, max(index - begin, 0) + 1)

    def _weights(self, to: np.ndarray, before: list[np.ndarray], *, corrects: bool) -> list[float]:
        """Weights in a step to the level `to`: of x, of the prediction there, and of the last three before it.

        `before` are the levels of the latter, as many as the order.
        """
        (alpha, sigma), here = to, before[0]
        h = half_log_snr(to) - half_log_snr(here)
        step = -h if self.predict_x0 else h
        grown = math.expm1(step)
        scale = step if self.solver_type == "bh1" else grown
        outer, of_x = (alpha, sigma / here[1]) if self.predict_x0 else (sigma, alpha / here[0])
        ratios = [(half_log_snr(level) - half_log_snr(here)) / h for level in before[1:]] + [1.0]
        rho = _rho(ratios, step, scale, corrects)
        weights = [0.0, -outer * grown] + [0.0] * (_MOST - 1)  # of the prediction there, then m0, m1, m2
        for number, ratio in enumerate(ratios[:-1]):  # of (m_i − m_0) / r_i
            part = -outer * scale * rho[number] / ratio
            weights[2 + number] += part
            weights[1] -= part
        if corrects:
            part = -outer * scale * rho[-1]
            weights[0] += part
            weights[1] -= part
        return [of_x, *weights]


def _rho(ratios: list[float], step: float, scale: float, corrects: bool) -> np.ndarray:
    """The weights of the finite differences, at `ratios` of the step (Zhao et al. 2023, theorem 3.1)."""
    order = len(ratios)
    if order == (1 if corrects else 2):
        return np.array([0.5])
    if order == 1:
        return np.array([])
    powers, right = [], []
    factorial, phi = 1, math.expm1(step) / step - 1
    for power in range(order):
        powers.append(np.power(ratios, power))
        right.append(phi * factorial / scale)
        factorial *= power + 2
        phi = phi / step - 1 / factorial
    matrix, vector = np.array(powers), np.array(right)
    return np.linalg.solve(matrix, vector) if corrects else np.linalg.solve(matrix[:-1, :-1], vector[:-1])
