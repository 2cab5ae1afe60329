"""Attention and rematerialization compiled for hardware that is not here, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

COMMON = """
import jax, jax.numpy as jnp, numpy as np
from unittest import mock
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxcxr.models import Compute, named_parameters, specialize, with_parameters
from jaxcxr.models.attention import SelfAttention2D, attention

def lowered(device, sharding, batch, length, heads, head_dim, keys=None, **how):
    def shape(length):
        return jax.ShapeDtypeStruct((batch, length, heads, head_dim), jnp.bfloat16, sharding=sharding)
    compute = Compute(platform=device.platform)
    def total(*inputs):
        return attention(*inputs, compute=compute).astype(jnp.float32).sum()
    return jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(shape(length), *[shape(keys or length)] * 2).lower(**how)
"""

FOR_V5E = """
devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
mesh = Mesh(np.array(devices).reshape(2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
split = NamedSharding(mesh, jax.P(("data", "fsdp")))
for length, heads, head_dim in ((4096, 8, 40), (1040, 5, 64)):
    with jax.set_mesh(mesh):
        compiled = lowered(devices[0], split, 2, length, heads, head_dim).compile()
    # Forward, the queries' gradient, the keys' and values'.
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * heads * length * length / 2  # no scores

alone = jax.sharding.SingleDeviceSharding(devices[0])
def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=alone)
def memory(remat):
    build = dict(head_dim=128, groups=8, epsilon=1e-5, dtype=jnp.float32)
    block = nnx.eval_shape(lambda: SelfAttention2D(128, rngs=nnx.Rngs(0), **build))
    block = specialize(block, remat=remat, platform="tpu")
    def loss(params, image):
        for own in params:
            image = with_parameters(block, own)(image)
        return jnp.square(image).mean()
    own = {name: shape(*leaf.shape) for name, leaf in named_parameters(block).items()}
    compiled = jax.jit(jax.grad(loss)).lower([own] * 3, shape(8, 32, 32, 128)).compile()
    return compiled.memory_analysis().temp_size_in_bytes
whole, inputs = memory("none"), memory("blocks")
assert inputs < 0.5 * whole, (inputs, whole)
print("compiled")
"""

FOR_H100 = """
from jax._src.cudnn import fused_attention_stablehlo as cudnn
device = jax.devices()[0]
class Gpu:
    platform = "gpu"
with mock.patch.object(cudnn, "check_cudnn_version", lambda: 91_000):  # JAX asks the library, which is not here
    for length, heads, head_dim, keys in ((4096, 8, 40, 4096), (64, 20, 64, 64), (4096, 8, 40, 77)):
        text = lowered(Gpu, None, 2, length, heads, head_dim, keys, lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
print("compiled")
"""


def check(script, **env):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **env}
    command = [sys.executable, "-c", COMMON + script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("compiled\n"), done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu here")
def test_splash_and_remat_on_a_v5e():
    check(
        FOR_V5E,
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
    )


def test_cudnn_on_an_h100():
    check(FOR_H100)
