"""The train state and the one update that every run makes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcxr.adaptation import union
from jaxcxr.methods.method import STATISTICS, Loss
from jaxcxr.training import ema
from jaxcxr.training.augment import Batch
from jaxcxr.training.optimizer import schedule_free_average

State = dict[str, Any]
"""`step` int32 (); `learnt` the parameters that learn, by name, float32; `opt_state`; `average` of what learns;
`nonfinite`, how many steps had a loss or gradient that was not finite, int32 (): `in_all` and, of the last ones,
`in_a_row`. What does not learn is no part of it."""

Parameters = Mapping[str, jax.Array]


def init_state(learnt: Parameters, tx: optax.GradientTransformation) -> State:
    """The state before the first update of the parameters that learn."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "learnt": dict(learnt),
        "opt_state": tx.init(dict(learnt)),
        # A copy: the state is donated, and one buffer cannot be given away twice.
        "average": jax.tree.map(jnp.copy, dict(learnt)),
        "nonfinite": {"in_all": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)},
    }


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    *,
    augment: Callable[[Batch, jax.Array], Batch] = lambda batch, keys: batch,
    expand: Callable[[Parameters, Parameters], Parameters] = union,
    project: Callable[[Parameters], Parameters] = dict,
    accumulation: int = 1,
    skip_nonfinite: bool = False,
    rate: optax.Schedule | None = None,
    gather: Callable[[Any], Any] = lambda parameters: parameters,
    scatter: Callable[[Any], Any] = lambda gradients: gradients,
) -> Callable[[State, Parameters, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The update: a pure function of (state, frozen, batch), its randomness that of (`seed`, step, row) alone.

    The loss is of `expand(learnt, frozen)`, the networks' parameters, and of what `augment` makes of the batch. It is
    averaged over the batch as `weighted_mean` does. After the update `project` brings what learns within its bounds;
    the parameters that the loss gives as `STATISTICS` are set to its values, whatever the optimizer makes of them.
    With `accumulation` the batch is gone through in as many parts, and the update is that of the whole. With
    `skip_nonfinite` a loss or gradient that is not finite changes nothing but `step` and `nonfinite`. `rate`, the
    learning rate by the number of updates before, is among the metrics. `gather` makes of parameters what is used, and
    `scatter` brings gradients back: see `parallel.gather`.
    """

    def step(state, frozen, batch):
        learnt, used = state["learnt"], gather(frozen)

        def objective(learning, batch, keys):
            errors, metrics = loss(expand(learning, used), augment(batch, keys), keys)
            return weighted_mean(errors, batch), metrics

        def gradient(learning, batch, keys):
            value, gradients = jax.value_and_grad(objective, has_aux=True)(learning, batch, keys)
            return value, scatter(gradients)

        keys = example_keys(jax.random.fold_in(jax.random.key(seed), state["step"]), batch)
        parts = mean_over_parts(gradient, gather(learnt), with_mean_weight(batch), keys, accumulation)
        (value, metrics), gradients = parts
        metrics = dict(metrics)
        followed = metrics.pop(STATISTICS, {})
        updates, opt_state = tx.update(gradients, state["opt_state"], learnt)
        updates = updates | {name: jnp.zeros_like(updates[name]) for name in followed}  # or weights would decay
        learnt = project(optax.apply_updates(learnt, updates)) | followed
        average = schedule_free_average(opt_state, learnt)
        if average is None:
            average = ema.update(state["average"], learnt, state["step"], ema_decay)
        else:
            average = average | followed
        norms = {"grad_norm": optax.global_norm(gradients), **_norms("grad_norm", gradients)}
        updated = {"learnt": learnt, "opt_state": opt_state, "average": average}
        finite = jnp.isfinite(value) & jnp.isfinite(norms["grad_norm"])
        if skip_nonfinite:
            updated = {name: _where(finite, tree, state[name]) for name, tree in updated.items()}
        count = state["nonfinite"]
        count = {
            "in_all": count["in_all"] + ~finite,
            "in_a_row": jnp.where(finite, 0, count["in_a_row"] + 1),
        }
        counts = {f"nonfinite/{name}": value for name, value in count.items()}
        rated = {"learning_rate": rate(state["step"] - state["nonfinite"]["in_all"])} if rate else {}
        metrics = {"loss": value, **norms, **_norms("update_norm", updates), **counts, **rated, **metrics}
        return {"step": state["step"] + 1, **updated, "nonfinite": count}, metrics

    return step


def with_mean_weight(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch whose `weight`, float32 (B,), has a mean of 1 over the whole of it, where it has one."""
    if "weight" not in batch:
        return dict(batch)
    mean = batch["weight"].mean()
    return {**batch, "weight": batch["weight"] / jnp.where(mean > 0, mean, 1)}


def weighted_mean(errors: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The mean of errors (B,) over a part of a batch, by `weight` where it has one: sum(weight error) / sum(weight).

    That is the mean of the parts once the weights of the whole have a mean of 1 (`with_mean_weight`).
    """
    return (errors * batch["weight"]).mean() if "weight" in batch else errors.mean()


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
    """What has learnt, to evaluate and to sample with: the averages, also from the host's memory."""

    def fetched(value: jax.Array) -> jax.Array:
        waits = value.sharding.memory_kind == "pinned_host"
        return jax.device_put(value, value.sharding.with_memory_kind("device")) if waits else value

    return jax.tree.map(fetched, state["average"])


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _norms(name: str, tree: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Norms by group, which is the first two words of a parameter's name: `unet.up_blocks`."""
    groups: dict[str, list[jax.Array]] = {}
    for parameter, value in tree.items():
        groups.setdefault(".".join(parameter.split(".")[:2]), []).append(value)
    return {f"{name}/{group}": optax.global_norm(values) for group, values in groups.items()}
