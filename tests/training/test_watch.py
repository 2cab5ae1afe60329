import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcxr.training.step import init_state, make_step
from jaxcxr.training.watch import Watch

LEARNS = {"unet.mid.a", "unet.up.b"}


def loss(parameters, batch, keys):
    """Where x is inf the gradient is not finite in `unet.up` alone."""
    return parameters["unet.mid.a"] * batch["y"] + parameters["unet.up.b"] * batch["x"], {}


def follow(batches, *, skip=True):
    """The state and the values of all steps, of batches (x, y)."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    state = init_state({"unet.mid.a": jnp.float32(2), "unet.up.b": jnp.float32(3)}, tx)
    step = jax.jit(make_step(loss, tx, 0.5, seed=0, skip_nonfinite=skip))
    values = []
    for x, y in batches:
        state, found = step(state, {}, {"x": jnp.full(2, x), "y": jnp.full(2, y)})
        values.append(found)
    return state, values


GOOD, BAD, WORSE = (1.0, 2.0), (np.inf, 2.0), (np.nan, np.nan)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    before, _ = follow([GOOD])
    after, values = follow([GOOD, BAD, WORSE])
    learnt = ("learnt", "opt_state", "average")
    jax.tree.map(np.testing.assert_array_equal, [after[name] for name in learnt], [before[name] for name in learnt])
    assert after["step"] == 3
    assert [int(found["nonfinite/in_a_row"]) for found in values] == [0, 1, 2]
    again, values = follow([GOOD, BAD, GOOD, BAD, GOOD])
    assert [int(found["nonfinite/in_a_row"]) for found in values] == [0, 1, 0, 1, 0]
    assert again["nonfinite"] == {"in_all": 2, "in_a_row": 0}
    assert np.isnan(follow([WORSE], skip=False)[0]["learnt"]["unet.up.b"])


def watched(batches, allowed):
    watch = Watch(allowed, lambda step: [10 * step + 1, 10 * step + 2])
    for step, values in enumerate(follow(batches)[1], 1):
        watch.see(step, values)
    watch.catch_up()


@pytest.mark.parametrize(
    ("batches", "allowed", "message"),
    [
        (
            [GOOD, BAD, WORSE, GOOD],
            0,
            "at step 2 the loss is inf, the gradient is not finite in unet.up; the last checkpoint is kept;"
            " the places of its batch's records in the split train, from 0: 21, 22",
        ),
        ([WORSE], 0, "not finite in unet.mid, unet.up"),
        ([WORSE, GOOD, BAD, WORSE, BAD, GOOD], 2, "at step 5 the loss is inf.* as in 3 steps in a row"),
    ],
)
def test_what_is_not_finite_is_named(batches, allowed, message):
    with pytest.raises(FloatingPointError, match=message) as error:
        watched(batches, allowed)
    assert "\n" not in str(error.value)


def test_some_steps_may_be_skipped():
    watched([WORSE, GOOD, BAD, WORSE, GOOD], 2)


def test_a_step_is_looked_at_soon_without_a_checkpoint_or_a_log():
    watch = Watch(0, lambda step: [0])
    bad, good = (follow([batch])[1][0] for batch in (BAD, GOOD))
    watch.see(1, bad)
    for step in range(2, 9):
        watch.see(step, good)
    with pytest.raises(FloatingPointError, match="at step 1 "):
        watch.see(9, good)


def test_a_norm_that_overflows_is_told():
    watch = Watch(0, lambda step: [0])
    watch.see(1, {"loss": 2.0, "grad_norm": np.inf, "grad_norm/unet.mid": 3e38, "nonfinite/in_a_row": 1})
    with pytest.raises(FloatingPointError, match=r"at step 1 the loss is 2\.0, the norm of the gradient is inf"):
        watch.catch_up()
