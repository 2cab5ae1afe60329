"""Weights that are rounded and gathered once a step."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from jaxcxr.parallel.gather import gather, scatter
from tests.training.runs import ROOT

STEP = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxcxr.parallel import gather as weights, rules
from jaxcxr.parallel.mesh import make_mesh
from jaxcxr.plan import hlo
from jaxcxr.training.step import init_state, make_step

mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
draw = np.random.default_rng(0).standard_normal
parameters = {
    "a.kernel": draw((512, 1024), np.float32) / 32,
    "b.kernel": draw((1024, 512), np.float32) / 32,
    "b.bias": draw(512, np.float32),
}
frozen, tx = {"a.kernel": parameters["a.kernel"]}, optax.sgd(0.1, momentum=0.9)
learns = set(parameters) - set(frozen)
rows = {"x": draw((32, 512), np.float32)}

def loss(parameters, batch, keys):
    hidden = jnp.tanh(batch["x"] @ parameters["a.kernel"])
    return jnp.square(hidden @ parameters["b.kernel"] + parameters["b.bias"]).mean(-1), {}

def run(parts, **how):
    state = init_state({name: jnp.asarray(parameters[name]) for name in learns}, tx)
    shardings = rules.shard_state(state, "fsdp", "", "device", mesh)
    apart = rules.shard(frozen, "fsdp", mesh)
    lie = {**apart, **shardings["learnt"]}
    if how.pop("once", True):
        how["gather"] = lambda tree: weights.gather(tree, lie, jnp.float32)
        how["scatter"] = lambda tree: weights.scatter(tree, lie)
    step = make_step(loss, tx, 0.9, 0, accumulation=parts, **how)
    over_rows = NamedSharding(mesh, P(("data", "fsdp")))
    step = jax.jit(step, in_shardings=(shardings, apart, over_rows), out_shardings=(shardings, None))
    compiled = step.lower(state, frozen, rows).compile()
    new, _ = compiled(jax.device_put(state, shardings), jax.device_put(frozen, apart), jax.device_put(rows, over_rows))
    assert not new["learnt"]["b.kernel"].sharding.is_fully_replicated
    sent = hlo.by_kind(hlo.collectives(compiled.as_text(), [0] * 8))
    return sent, {name: np.asarray(new["learnt"][name]) - parameters[name] for name in learns}

whole = sum(parameters[name].nbytes for name in ("a.kernel", "b.kernel"))
(sent_1, one), (sent_4, four), (_, left) = run(1), run(4), run(4, once=False)
for sent in (sent_1, sent_4):
    assert (sent["all-gather"]["count"], sent["all-gather"]["bytes"]) == (2, whole)
for found in (one, four):
    for name in learns:
        assert np.linalg.norm(found[name] - left[name]) < 1e-5 * np.linalg.norm(left[name])
print("gathered once")
"""


def test_split_weights_are_gathered_once_whatever_the_parts():
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=1", "device_count=8")
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", STEP], env=env, capture_output=True, text=True, check=False)
    assert "gathered once" in done.stdout, done.stdout + done.stderr[-2000:]


def test_kernels_are_rounded_before_they_are_sent_and_gradients_come_back_whole():
    mesh = AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    specs = {"a.kernel": jax.P("fsdp", "tensor"), "b.scale": jax.P("fsdp"), "c.kernel": jax.P(None, "tensor")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    values = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32) for name in specs}
    used = jax.eval_shape(lambda tree: gather(tree, shardings, jnp.bfloat16), values)
    assert {name: value.dtype.name for name, value in used.items()} == {
        "a.kernel": "bfloat16",
        "b.scale": "float32",  # which norms use as it is
        "c.kernel": "bfloat16",  # sent to nobody, and not rounded in each part of a batch
    }
    back = jax.eval_shape(lambda tree: scatter(tree, shardings), used)
    assert {value.dtype.name for value in back.values()} == {"float32"}
    jaxpr = jax.make_jaxpr(lambda tree: gather(tree, shardings, jnp.bfloat16))(values)
    # Each is held where it lies until it is rounded.
    (own, sent, own_scale, scale) = [
        e.params["sharding"].spec for e in jaxpr.eqns if e.primitive.name == "sharding_constraint"
    ]
    assert (own, own_scale) == (specs["a.kernel"], specs["b.scale"])
    assert (sent, scale) == (jax.P(None, "tensor"), jax.P(None))
