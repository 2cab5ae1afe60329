"""What a sampler is: diffusers' settings of one scheduler class, and the calls that they make of a network."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np
from msgspec import Meta

from jaxcxr.diffusion.process import PREDICTIONS
from jaxcxr.diffusion.schedule import FILE, MOST_TIMESTEPS, Beta, BetaSchedule, Schedule, Timesteps
from jaxcxr.errors import UserError

Spacing = Literal["linspace", "leading", "trailing"]
ClipRange = Annotated[float, Meta(gt=0, le=1e6)]


class Step(Protocol):
    """One call's update of x."""

    def __call__(
        self, x: jax.Array, output: jax.Array, coefficients: Any, keys: jax.Array, carry: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the next x, float32 (B, H, W, C), and the sampler's memory of earlier calls."""
        ...


class Sampler(NamedTuple):
    """The calls of a network that lead from noise to an image.

    x is always α x_0 + σ ε with α² + σ² = 1 (α + σ = 1 for flows); samplers that diffusers writes in x / α are
    rewritten.

    Attributes:
      timesteps: what the network is given at each call, int32 or float32 (calls,).
      levels: α and σ of x before each call, and (1, 0) after the last one, float64 (calls + 1, 2).
      coefficients: a tree of arrays (calls, …), one row a call, computed in float64.
      step: the update.
      init: x before the first call -> the memory then.
      initial_scale: what unit noise is multiplied by to start from noise alone.
      partial: whether first calls were left out, so that x starts from an image.
    """

    timesteps: np.ndarray
    levels: np.ndarray
    coefficients: Any
    step: Step
    init: Callable[[jax.Array], Any] = lambda x: ()
    initial_scale: float = 1.0
    partial: bool = False

    def since(self, call: int) -> "Sampler":
        """The calls from number `call` on."""
        return self._replace(
            timesteps=self.timesteps[call:],
            levels=self.levels[call:],
            coefficients=jax.tree.map(lambda rows: rows[call:], self.coefficients),
            partial=call > 0,
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys that diffusers honours in the `scheduler_config.json` of one class, with that class's defaults.

    Attributes:
      scheduler: the class in diffusers.
      prediction_types: those that the class allows.
    """

    scheduler: ClassVar[str]
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample")

    num_train_timesteps: Timesteps = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[Beta, ...] | None = None
    prediction_type: str = "epsilon"
    steps_offset: Annotated[int, Meta(ge=0, le=MOST_TIMESTEPS)] = 0

    def __post_init__(self) -> None:
        if self.prediction_type not in self.prediction_types:
            self.refuse("prediction_type", f"it may be {', '.join(self.prediction_types)}")

    def sampler(self, num_steps: int, begin: int = 0) -> Sampler:
        """The calls of `num_steps` steps.

        Args:
          num_steps: from noise alone to an image.
          begin: steps left out at the start, fewer than `num_steps`, as diffusers' image-to-image pipeline leaves them
            out: what a solver knows of earlier calls starts anew there.

        Raises:
          UserError: the class has no so many steps, or a setting does not allow them.
        """
        raise NotImplementedError

    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t, float32 (T,), as diffusers' class has it before any change of its last value."""
        return Schedule(
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            trained_betas=self.trained_betas,
            rescale_betas_zero_snr=getattr(self, "rescale_betas_zero_snr", False),
        ).alphas_cumprod()

    def to_config(self) -> dict[str, Any]:
        """The `scheduler_config.json` from which diffusers builds the same scheduler."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"_class_name": self.scheduler, "_diffusers_version": "0.35.0", **values}

    def require_signal(self, levels: np.ndarray) -> None:
        """Raises UserError if predicted noise would be read off noise alone; levels are (α, σ), (n, 2)."""
        if self.prediction_type == "epsilon" and not levels[:, 0].all():
            raise UserError(
                f"{FILE}: zero terminal SNR (rescale_betas_zero_snr) cannot be sampled with prediction_type 'epsilon';"
                " it may be 'v_prediction' or 'sample'"
            )

    def read(self, x: jax.Array, output: jax.Array, alpha: Any, sigma: Any) -> tuple[jax.Array, jax.Array]:
        """x_0 and ε from a network's output at a level."""
        return PREDICTIONS[self.prediction_type].read(x, output, alpha, sigma)

    def refuse(self, key: str, remedy: str) -> None:
        """Raises UserError for a setting that is not supported."""
        raise UserError(f"{FILE}: {self.scheduler} with {key}={getattr(self, key)!r:.100}: {remedy}")


def normal(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal numbers of x's shape (B, …), each example's from its own key (B,)."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
