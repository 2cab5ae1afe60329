"""The train state and the one update that every run makes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcxr.training import ema
from jaxcxr.training.objectives import Loss
from jaxcxr.training.optimizer import schedule_free_average

State = dict[str, Any]
"""`step` int32 (); `params` every parameter; `opt_state`; `ema` those that learn, averaged; `nonfinite`, how many steps
had a loss or gradient that was not finite, int32 (): `in_all` and, of the last ones, `in_a_row`."""


def init_state(parameters: Mapping[str, jax.Array], learns: set[str], tx: optax.GradientTransformation) -> State:
    """The state before the first update; `learns` are the names of the parameters that learn."""
    trainable = _only(parameters, learns)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": dict(parameters),
        "opt_state": tx.init(trainable),
        # A copy: the state is donated, and one buffer cannot be given away twice.
        "ema": jax.tree.map(jnp.copy, trainable),
        "nonfinite": {"in_all": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)},
    }


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    learns: set[str],
    ema_decay: float,
    seed: int,
    accumulation: int = 1,
    skip_nonfinite: bool = False,
    gather: Callable[[Any], Any] = lambda parameters: parameters,
    scatter: Callable[[Any], Any] = lambda gradients: gradients,
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The update: a pure function of (state, batch), its randomness that of (`seed`, step, row of the batch) alone.

    With `accumulation` the batch is gone through in as many parts, and the update is that of the whole. With
    `skip_nonfinite` a loss or gradient that is not finite changes nothing but `step` and `nonfinite`. The loss is of
    what `gather` makes of the state's parameters, and `scatter` brings its gradients back: see `parallel.gather`.
    """

    def step(state, batch):
        trainable, used = _only(state["params"], learns), gather(state["params"])

        def objective(learning, batch, keys):
            return loss(used | learning, batch, keys)

        def gradient(learning, batch, keys):
            value, gradients = jax.value_and_grad(objective, has_aux=True)(learning, batch, keys)
            return value, scatter(gradients)

        keys = example_keys(jax.random.fold_in(jax.random.key(seed), state["step"]), batch)
        (value, metrics), gradients = mean_over_parts(gradient, _only(used, learns), batch, keys, accumulation)
        updates, opt_state = tx.update(gradients, state["opt_state"], trainable)
        trainable = optax.apply_updates(trainable, updates)
        average = schedule_free_average(opt_state, trainable)
        if average is None:
            average = ema.update(state["ema"], trainable, state["step"], ema_decay)
        norms = {"grad_norm": optax.global_norm(gradients), **_norms("grad_norm", gradients)}
        learnt = {"params": state["params"] | trainable, "opt_state": opt_state, "ema": average}
        finite = jnp.isfinite(value) & jnp.isfinite(norms["grad_norm"])
        if skip_nonfinite:
            learnt = {name: _where(finite, tree, state[name]) for name, tree in learnt.items()}
        count = state["nonfinite"]
        count = {
            "in_all": count["in_all"] + ~finite,
            "in_a_row": jnp.where(finite, 0, count["in_a_row"] + 1),
        }
        counts = {f"nonfinite/{name}": value for name, value in count.items()}
        metrics = {"loss": value, **norms, **_norms("update_norm", updates), **counts, **metrics}
        return {"step": state["step"] + 1, **learnt, "nonfinite": count}, metrics

    return step


def example_keys(key: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """A key for each row of a batch, (B,)."""
    rows = jnp.arange(len(next(iter(batch.values()))))
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def mean_over_parts(gradient: Callable, trainable: Any, batch: Any, keys: jax.Array, parts: int) -> Any:
    """The mean of `gradient(trainable, part of batch, its keys)` over equal parts, one after the other."""
    if parts == 1:
        return gradient(trainable, batch, keys)

    def split(value):
        # Every parts-th row goes into the same part: rows stay on the devices that they lie on.
        return jnp.moveaxis(value.reshape(-1, parts, *value.shape[1:]), 1, 0)

    def add(total, part):
        return jax.tree.map(lambda a, b: a + b / parts, total, gradient(trainable, *part)), None

    split_all = jax.tree.map(split, (dict(batch), keys))
    first = jax.tree.map(lambda x: x[0], split_all)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, trainable, *first))
    return jax.lax.scan(add, zeros, split_all)[0]


def averaged(state: State) -> dict[str, jax.Array]:
    """The parameters to evaluate and to sample with: the averages where there are any, also from the host's memory."""

    def fetched(value: jax.Array) -> jax.Array:
        waits = value.sharding.memory_kind == "pinned_host"
        return jax.device_put(value, value.sharding.with_memory_kind("device")) if waits else value

    return state["params"] | jax.tree.map(fetched, state["ema"])


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _norms(name: str, tree: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Norms by group, which is the first two words of a parameter's name: `unet.up_blocks`."""
    groups: dict[str, list[jax.Array]] = {}
    for parameter, value in tree.items():
        groups.setdefault(".".join(parameter.split(".")[:2]), []).append(value)
    return {f"{name}/{group}": optax.global_norm(values) for group, values in groups.items()}


def _only(parameters: Mapping[str, jax.Array], names: set[str]) -> dict[str, jax.Array]:
    return {name: value for name, value in parameters.items() if name in names}
