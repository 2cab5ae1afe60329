import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from jaxcxr.errors import UserError
from jaxcxr.parallel import rules
from jaxcxr.parallel.mesh import make_mesh


def test_a_mesh_takes_what_is_there():
    mesh = make_mesh((-1, 1))
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1}
    for shape in ((3, 1), (-1, -1), (1,), (0, 1)):
        with pytest.raises(UserError, match=r"config\.mesh"):
            make_mesh(shape)


def test_fsdp_splits_the_largest_axis_and_moments_follow_their_parameter():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    shapes = {
        "params": {"unet.a.kernel": jax.ShapeDtypeStruct((3, 3, 320, 640), jnp.float32)},
        "opt_state": ({"mu": {"unet.a.kernel": jax.ShapeDtypeStruct((3, 3, 320, 640), jnp.float32)}},),
        "ema": {"unet.a.bias": jax.ShapeDtypeStruct((640,), jnp.float32)},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    assert rules.split_largest((3, 3, 320, 640), mesh) == jax.P(None, None, None, "fsdp")
    assert rules.split_largest((1024, 511), mesh) == jax.P("fsdp")
    assert rules.split_largest((640,), mesh) == jax.P()
    found = rules.shard(shapes, "fsdp", mesh)
    assert found["opt_state"][0]["mu"]["unet.a.kernel"].spec == found["params"]["unet.a.kernel"].spec
    assert found["params"]["unet.a.kernel"].spec == jax.P(None, None, None, "fsdp")
    assert found["step"].spec == found["ema"]["unet.a.bias"].spec == jax.P()


def test_unknown_strategies_and_uncovered_parameters_are_told(monkeypatch):
    with pytest.raises(UserError, match="no such strategy"):
        rules.shard({}, "zero", make_mesh((-1, 1)))
    monkeypatch.setitem(rules.STRATEGIES, "gap", ((r"unet\..*", rules.replicate),))
    with pytest.raises(UserError, match=r"parameter vae\.x: no sharding rule"):
        rules.shard({"vae.x": jnp.zeros(3)}, "gap", make_mesh((-1, 1)))


def test_patterns_match_whole_names():
    names = {"unet.a.kernel": 0, "unet.b.kernel": 0, "vae.unet.kernel": 0}
    assert rules.select(names, r"unet\..*") == {"unet.a.kernel", "unet.b.kernel"}
    with pytest.raises(UserError, match="no parameter has such a name"):
        rules.select(names, "unet")
    with pytest.raises(UserError, match="not a regular expression"):
        rules.select(names, "unet(")


SAME_STEP = """
import jax, jax.numpy as jnp, numpy as np, optax
from jaxcxr.parallel import mesh as meshes, rules
from jaxcxr.training.step import init_state, make_step

def loss(parameters, batch, key):
    x = batch["x"] + jax.random.normal(key, batch["x"].shape)
    return jnp.square(jnp.tanh(x @ parameters["unet.a.kernel"]) - 1).mean(), {}

start = {"unet.a.kernel": jnp.asarray(np.random.default_rng(0).standard_normal((512, 1024), np.float32) / 20)}
batch = {"x": np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)}
tx = optax.adamw(1e-2)
results = []
for shape, strategy in [((8, 1), "replicated"), ((1, 8), "fsdp"), ((2, 4), "fsdp")]:
    mesh = meshes.make_mesh(shape)
    state = init_state(start, set(start), tx)
    shardings = rules.shard(state, strategy, mesh)
    step = jax.jit(make_step(loss, tx, set(start), 0.9, 0), in_shardings=(shardings, meshes.batch_sharding(mesh)),
                   out_shardings=(shardings, meshes.replicated(mesh)))
    state = jax.device_put(state, shardings)
    for _ in range(3):
        state, metrics = step(state, meshes.to_global(batch, mesh))
    results.append(np.asarray(state["ema"]["unet.a.kernel"]))
single = init_state(start, set(start), tx)
for _ in range(3):
    single, _ = jax.jit(make_step(loss, tx, set(start), 0.9, 0))(single, batch)
single = np.asarray(single["ema"]["unet.a.kernel"])
for result in results:
    error = np.linalg.norm(result - single) / np.linalg.norm(single)
    assert error < 1e-5, error
    assert np.abs(result - np.asarray(start["unet.a.kernel"])).max() > 1e-3
print("same on 8 devices")
"""


def test_one_step_is_the_same_on_eight_devices():
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=1", "device_count=8")
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SAME_STEP], env=env, capture_output=True, text=True, check=False)
    assert "same on 8 devices" in done.stdout, done.stderr[-2000:]
