"""The train state and the one update that every run makes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcxr.training import ema
from jaxcxr.training.objectives import Loss

State = dict[str, Any]
"""`step` int32 (); `params` every parameter; `opt_state`; `ema` those that learn, averaged."""


def init_state(parameters: Mapping[str, jax.Array], learns: set[str], tx: optax.GradientTransformation) -> State:
    """The state before the first update; `learns` are the names of the parameters that learn."""
    trainable = _only(parameters, learns)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": dict(parameters),
        "opt_state": tx.init(trainable),
        # A copy: the state is donated, and one buffer cannot be given away twice.
        "ema": jax.tree.map(jnp.copy, trainable),
    }


def make_step(
    loss: Loss, tx: optax.GradientTransformation, learns: set[str], ema_decay: float, seed: int
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The update: a pure function of (state, batch), its randomness that of (`seed`, step) alone."""

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        trainable = _only(state["params"], learns)

        def objective(trainable):
            return loss(state["params"] | trainable, batch, key)

        (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(trainable)
        updates, opt_state = tx.update(gradients, state["opt_state"], trainable)
        trainable = optax.apply_updates(trainable, updates)
        metrics = {"loss": value, "grad_norm": optax.global_norm(gradients), **metrics}
        return {
            "step": state["step"] + 1,
            "params": state["params"] | trainable,
            "opt_state": opt_state,
            "ema": ema.update(state["ema"], trainable, state["step"], ema_decay),
        }, metrics

    return step


def averaged(state: State) -> dict[str, jax.Array]:
    """The parameters to judge and to sample with: the averages where there are any."""
    return state["params"] | state["ema"]


def _only(parameters: Mapping[str, jax.Array], names: set[str]) -> dict[str, jax.Array]:
    return {name: value for name, value in parameters.items() if name in names}
