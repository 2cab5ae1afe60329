"""DPM-Solver and DPM-Solver++ with several steps: Lu et al. 2022, arXiv 2206.00927 and 2211.01095.

Every step is a sum of x, the last predictions and noise; the weights are computed beforehand.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jaxcxr.diffusion.samplers import grid
from jaxcxr.diffusion.samplers.base import Sampler, Settings, Spacing, normal


@dataclasses.dataclass(frozen=True)
class DPMSolverMultistep(Settings):
    """Order 1 to 3; `sde-` algorithms add noise at each step."""

    scheduler: ClassVar[str] = "DPMSolverMultistepScheduler"
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample", "flow_prediction")

    solver_order: int = 2
    thresholding: bool = False
    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] = "dpmsolver++"
    solver_type: Literal["midpoint", "heun", "logrho", "bh1", "bh2"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    timestep_spacing: Spacing = "linspace"
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool = False

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """See `Settings.sampler`."""
        self._check()
        timesteps, levels = self.grid(num_steps)
        noisy, of_clean = self.algorithm_type.startswith("sde-"), self.algorithm_type.endswith("++")
        heun = self.solver_type == "heun"
        rows = []
        for index in range(num_steps):
            order = self._order(index, num_steps, begin)
            steps = [levels[index - back] for back in range(order)]
            rows.append(_weights(levels[index + 1], steps, of_clean=of_clean, noisy=noisy, heun=heun))
        weights = np.array(rows)
        coefficients = {"level": levels[:-1], "x": weights[:, 0], "m": weights[:, 1:4], "std": weights[:, 4]}

        def step(x, output, c, keys, carry):
            clean, noise = self.read(x, output, *c["level"])
            predictions = jnp.stack([clean if of_clean else noise, carry[0], carry[1]])
            x = c["x"] * x + jnp.tensordot(c["m"], predictions, 1)
            return (x + c["std"] * normal(keys, x) if noisy else x), predictions[:2]

        def init(x):
            return jnp.zeros((2, *x.shape), x.dtype)

        return Sampler(timesteps, levels, coefficients, step, init).since(begin)

    def grid(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps, int32 (n,), and levels, float64 (n + 1, 2)."""
        table = grid.ratios(grid.floored(self.alphas_cumprod(), self.rescale_betas_zero_snr))
        if self.use_flow_sigmas:
            shares = np.linspace(1, 1 / self.num_train_timesteps, num_steps + 1)
            sigma = self.flow_shift * (1 - shares) / (1 + (self.flow_shift - 1) * (1 - shares))
            sigma = sigma[::-1][:-1]
            timesteps, last = sigma * self.num_train_timesteps, self._last(table)
            sigma = np.append(sigma, last).astype(np.float32).astype(np.float64)
            return timesteps.astype(np.int32), np.stack([1 - sigma, sigma], axis=1)
        timesteps = grid.spaced_without_end(self, self.timestep_spacing, num_steps, self._last_timestep(table))
        found = np.interp(timesteps, np.arange(len(table)), table)
        spread = self._lu if self.use_lu_lambdas and not self.use_karras_sigmas else grid.spread(self)
        if spread is not None:
            found = spread(float(table[0]), float(table[-1]), num_steps)
            timesteps = grid.timesteps_of_ratios(found, table)
            if (self.use_karras_sigmas or self.use_lu_lambdas) and self.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
        ratios = np.append(found, self._last(table)).astype(np.float32)
        return timesteps.astype(np.int32), grid.levels_of_ratios(ratios)

    def _check(self) -> None:
        if self.thresholding:
            self.refuse("thresholding", "it is for images, not for latents; set it to false")
        if self.variance_type is not None:
            self.refuse("variance_type", "the network would have to predict a variance; it may be null")
        if self.use_dynamic_shifting:
            self.refuse("use_dynamic_shifting", "it is not supported; remove it")
        if not 1 <= self.solver_order <= 3:
            self.refuse("solver_order", "it may be 1, 2 or 3")
        if self.algorithm_type == "sde-dpmsolver" and self.solver_order == 3:
            self.refuse("solver_order", "sde-dpmsolver has orders 1 and 2")
        if self.algorithm_type in ("dpmsolver", "sde-dpmsolver") and self.final_sigmas_type == "zero":
            self.refuse("algorithm_type", "it wants final_sigmas_type 'sigma_min'")
        if self.use_flow_sigmas != (self.prediction_type == "flow_prediction"):
            self.refuse("use_flow_sigmas", "it goes with prediction_type 'flow_prediction' alone")

    def _order(self, index: int, num_steps: int, begin: int) -> int:
        few = self.lower_order_final and num_steps < 15
        if index == num_steps - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        return min(self.solver_order, max(index - begin, 0) + 1, 2 if few and index == num_steps - 2 else 3)

    def _last(self, table: np.ndarray) -> float:
        return float(table[0]) if self.final_sigmas_type == "sigma_min" else 0.0

    def _last_timestep(self, table: np.ndarray) -> int:
        """T, or fewer where the noisiest levels are left out: those whose log(α/σ) is below `lambda_min_clipped`."""
        return len(table) - int(np.searchsorted(-np.log(table[::-1]), self.lambda_min_clipped))

    @staticmethod
    def _lu(lowest: float, highest: float, num_steps: int) -> np.ndarray:
        return np.exp(np.linspace(np.log(highest), np.log(lowest), num_steps))


def half_log_snr(level: np.ndarray) -> float:
    """λ = log α − log σ; infinite where σ is 0."""
    alpha, sigma = level
    return math.log(alpha) - math.log(sigma) if sigma > 0 else math.inf


def _weights(to: np.ndarray, levels: list[np.ndarray], *, of_clean: bool, noisy: bool, heun: bool) -> list[float]:
    """Weights of x, of the last three predictions and of noise in a step to the level `to`.

    Args:
      to: (α, σ).
      levels: (α, σ) now, and one and two steps ago: as many as the order.
      of_clean: predictions are of x_0 (DPM-Solver++) rather than of ε.
      noisy: the stochastic form.
      heun: the form of the second-order term.
    """
    alpha, sigma = to
    here = levels[0]
    lambdas = [half_log_snr(level) for level in levels]
    h = half_log_snr(to) - lambdas[0]
    if of_clean:
        decay = math.exp(-h)
        gain = alpha * (1 - decay**2) if noisy else alpha * (1 - decay)
        of_x = sigma / here[1] * (decay if noisy else 1.0)
        std = sigma * math.sqrt(1 - decay**2) if noisy else 0.0
    else:
        growth = math.expm1(h)
        gain = -sigma * growth * (2 if noisy else 1)
        of_x = alpha / here[0]
        std = sigma * math.sqrt(math.expm1(2 * h)) if noisy else 0.0
    # Of finite differences of the predictions: D0 = m0, D1, D2.
    differences = [gain, 0.0, 0.0]
    if len(levels) > 1:
        first, second = _higher(alpha, sigma, h, of_clean=of_clean, noisy=noisy)
        differences[1] = gain / 2 if len(levels) == 2 and not heun else first
        differences[2] = second if len(levels) == 3 else 0.0
    return [of_x, *_of_predictions(differences, lambdas, h), std]


def _higher(alpha: float, sigma: float, h: float, *, of_clean: bool, noisy: bool) -> tuple[float, float]:
    """Weights of D1 in Heun's form and of D2."""
    if of_clean and noisy:
        lost = 1 - math.exp(-2 * h)
        return alpha * (1 - lost / (2 * h)), alpha * ((lost - 2 * h) / (2 * h) ** 2 - 0.5)
    if of_clean:
        lost = math.expm1(-h)
        return alpha * (lost / h + 1), -alpha * ((lost + h) / h**2 - 0.5)
    growth = math.expm1(h)
    return -sigma * (growth / h - 1) * (2 if noisy else 1), -sigma * ((growth - h) / h**2 - 0.5)


def _of_predictions(differences: list[float], lambdas: list[float], h: float) -> list[float]:
    """Turns weights of D0, D1 and D2 into those of m0, m1 and m2."""
    d0, d1, d2 = differences
    if len(lambdas) == 1:
        return [d0, 0.0, 0.0]
    r0 = (lambdas[0] - lambdas[1]) / h
    if len(lambdas) == 2:
        return [d0 + d1 / r0, -d1 / r0, 0.0]
    r1 = (lambdas[1] - lambdas[2]) / h
    # D1 = D10 + r0/(r0 + r1) (D10 − D11), D2 = (D10 − D11)/(r0 + r1), D10 = (m0 − m1)/r0, D11 = (m1 − m2)/r1.
    near = d1 + (d1 * r0 + d2) / (r0 + r1)
    far = -(d1 * r0 + d2) / (r0 + r1)
    return [d0 + near / r0, -near / r0 + far / r1, -far / r1]
