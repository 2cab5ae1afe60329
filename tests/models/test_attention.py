"""Which kernel serves, and that all give the same values and gradients."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.models import AutoencoderKL, Compute, abstract, specialize
from jaxcxr.models import attention_kernels as kernels
from jaxcxr.models.attention import attention

VAE = {"block_out_channels": [16], "norm_num_groups": 8}


def drawn(queries, keys, head_dim, *, batch=1, heads=1, dtype="float32"):
    """Queries, keys, values and the gradient of what comes out."""
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    return [jnp.asarray(rng.standard_normal((batch, length, heads, head_dim)), dtype) for length in lengths]


def pulled_back(compute, arrays):
    """The output of attention and its gradients, float32."""

    def run(query, key, value, cotangent):
        mixed, pull = jax.vjp(lambda *inputs: attention(*inputs, compute=compute), query, key, value)
        return mixed, *pull(cotangent)

    return [np.asarray(leaf, np.float32) for leaf in jax.jit(run)(*arrays)]


def distance(found, expected):
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected, strict=True))


# platform, asked for, (queries, keys, head_dim), dtype, masked, kernel
TABLE = [
    ("cpu", "auto", (4096, 4096, 64), "bfloat16", False, "sliced"),
    ("cpu", "auto", (256, 77, 40), "float32", False, "sliced"),
    ("cpu", "auto", (64, 77, 40), "float32", False, "xla"),
    ("cpu", "auto", (256, 256, 40), "float32", True, "xla"),
    ("cpu", "xla", (256, 256, 40), "float32", False, "xla"),
    ("cpu", "sliced", (64, 77, 40), "float32", False, "sliced"),
    ("tpu", "sliced", (4096, 77, 40), "bfloat16", False, "sliced"),
    ("tpu", "auto", (4096, 4096, 40), "bfloat16", False, "splash"),
    ("tpu", "auto", (1024, 1024, 160), "bfloat16", False, "splash"),
    ("tpu", "auto", (4096, 4096, 512), "bfloat16", False, "splash"),
    ("tpu", "auto", (1023, 1023, 64), "bfloat16", False, "xla"),
    ("tpu", "auto", (256, 256, 160), "bfloat16", False, "xla"),
    ("tpu", "auto", (4096, 77, 40), "bfloat16", False, "xla"),
    ("tpu", "auto", (4096, 4096, 40), "float32", False, "xla"),
    ("tpu", "auto", (4096, 4096, 40), "bfloat16", True, "xla"),
    ("tpu", "xla", (4096, 4096, 40), "bfloat16", False, "xla"),
    ("tpu", "splash", (4096, 77, 40), "bfloat16", False, "splash"),
    ("tpu", "splash", (77, 77, 64), "bfloat16", True, "xla"),
    ("gpu", "auto", (4096, 4096, 40), "bfloat16", False, "cudnn"),
    ("cuda", "auto", (4096, 256, 40), "bfloat16", False, "cudnn"),
    ("gpu", "auto", (4096, 77, 40), "bfloat16", False, "cudnn"),
    ("gpu", "auto", (4095, 77, 40), "bfloat16", False, "xla"),
    ("gpu", "auto", (64, 64, 128), "float16", False, "cudnn"),
    ("gpu", "auto", (256, 256, 160), "bfloat16", False, "xla"),
    ("gpu", "auto", (4096, 4096, 512), "bfloat16", False, "xla"),
    ("gpu", "auto", (4096, 4096, 4), "bfloat16", False, "xla"),
    ("gpu", "auto", (4096, 4096, 40), "float32", False, "xla"),
    ("gpu", "auto", (77, 77, 64), "bfloat16", True, "xla"),
    ("gpu", "xla", (4096, 4096, 40), "bfloat16", False, "xla"),
    ("gpu", "cudnn", (4096, 78, 40), "bfloat16", False, "cudnn"),
    ("gpu", "cudnn", (4096, 77, 40), "float32", False, "xla"),
    ("gpu", "cudnn", (4096, 4096, 512), "bfloat16", False, "xla"),
]


@pytest.mark.parametrize(("platform", "asked", "shape", "dtype", "masked", "kernel"), TABLE)
def test_the_kernel_follows_from_platform_and_shape(platform, asked, shape, dtype, masked, kernel):
    queries, keys, head_dim = shape
    compute = Compute(attention=asked, platform=platform)
    found = kernels.choose(
        compute, queries=queries, keys=keys, head_dim=head_dim, dtype=jnp.dtype(dtype), masked=masked
    )
    assert found == kernel


@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
@pytest.mark.parametrize(("queries", "keys"), [(512, 512), (130, 77)])
def test_splash_is_xla_to_rounding(head_dim, queries, keys):
    arrays = drawn(queries, keys, head_dim)
    expected = pulled_back(Compute(attention="xla"), arrays)
    assert distance(pulled_back(Compute(attention="splash"), arrays), expected) < 1e-5


def test_splash_over_many_tiles_heads_and_images():
    arrays = drawn(1152, 1152, 8, batch=2, heads=2)  # three tiles of 384
    expected = pulled_back(Compute(attention="xla"), arrays)
    assert distance(pulled_back(Compute(attention="splash"), arrays), expected) < 1e-5


@pytest.mark.parametrize("head_dim", [16, 40, 512])
@pytest.mark.parametrize(("queries", "keys"), [(130, 130), (130, 77)])
def test_sliced_is_xla_to_rounding(head_dim, queries, keys):
    arrays = drawn(queries, keys, head_dim, batch=2, heads=3)
    expected = pulled_back(Compute(attention="xla"), arrays)
    assert distance(pulled_back(Compute(attention="sliced"), arrays), expected) < 1e-5


def test_sliced_stands_scores_whose_exponentials_are_infinite():
    arrays = [array * 6 for array in drawn(128, 128, 64)]  # scores in the hundreds
    expected = pulled_back(Compute(attention="xla"), arrays)
    assert distance(pulled_back(Compute(attention="sliced"), arrays), expected) < 1e-3


def test_scores_of_bfloat16_are_float32_in_every_kernel():
    arrays = [array * 6 for array in drawn(256, 256, 64, dtype="bfloat16")]  # scores in the hundreds
    exact = pulled_back(Compute(), [array.astype(jnp.float32) for array in arrays])
    for kernel in ("xla", "splash", "sliced"):
        # Scores rounded to bfloat16 would be off by up to one, their exponentials by a factor.
        assert distance(pulled_back(Compute(attention=kernel), arrays), exact) < 0.02, kernel


@pytest.mark.parametrize(
    ("length", "keys", "head_dim"), [(4096, 4096, 40), (1024, 1024, 80), (1024, 1024, 64), (4096, 77, 40), (64, 77, 64)]
)
def test_the_kernel_of_this_hardware_is_xla_to_rounding(length, keys, head_dim):
    platform = jax.default_backend()
    if platform == "cpu":
        pytest.skip("cuDNN needs a GPU, and splash as it is compiled a TPU")
    arrays = drawn(length, keys, head_dim, batch=2, heads=4, dtype="bfloat16")
    exact = pulled_back(Compute(attention="xla"), [array.astype(jnp.float32) for array in arrays])
    compute = Compute(attention="splash" if platform == "tpu" else "cudnn", platform=platform)
    assert distance(pulled_back(compute, arrays), exact) < 0.02


def test_a_mask_is_kept_whatever_kernel_is_asked_for():
    query, key, value, _ = drawn(6, 6, 8)
    mixed = attention(query, key, value, causal=True, compute=Compute(attention="splash"))
    assert np.allclose(mixed[:, 0], value[:, 0], atol=1e-6)


def test_kernels_that_cannot_be_had_are_refused():
    network = abstract(AutoencoderKL, VAE)
    for asked, platform, reason in (
        ("flash", "cpu", "may be auto, xla, cudnn, splash or sliced"),
        ("cudnn", "tpu", "runs on NVIDIA GPUs"),
        ("splash", "gpu", "runs on TPUs"),
        ("cudnn", "gpu", "has no float32"),
    ):
        with pytest.raises(UserError, match=rf"config\.attention='{asked}': .*{reason}"):
            specialize(network, attention=asked, platform=platform)
    specialize(abstract(AutoencoderKL, VAE, jnp.bfloat16), attention="cudnn", platform="cuda")


SAME_UNDER_A_MESH = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding
from jaxcxr.models import Compute
from jaxcxr.models.attention import attention

def run(compute, *arrays):
    mixed, pull = jax.vjp(lambda *inputs: attention(*inputs, compute=compute), *arrays[:3])
    return mixed, *pull(arrays[3])

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
rng = np.random.default_rng(0)
# Everything divides; two images and three heads are split over one axis and over none.
for batch, heads, share in ((4, 2, (1, 128, 1, 8)), (2, 3, (1, 128, 3, 8))):
    arrays = [rng.standard_normal((batch, 128, heads, 8)).astype(np.float32) for _ in range(4)]
    expected = jax.jit(lambda *a: run(Compute(attention="xla"), *a))(*arrays)
    whole = NamedSharding(mesh, jax.P(("data", "fsdp") if batch == 4 else "data"))
    for kernel in ("splash", "sliced"):
        with jax.set_mesh(mesh):
            step = jax.jit(lambda *a: run(Compute(attention=kernel), *a), in_shardings=whole)
            found = step(*(jax.device_put(array, whole) for array in arrays))
        assert found[0].addressable_shards[0].data.shape == share, (kernel, found[0].sharding)
        for a, b in zip(found, expected, strict=True):
            assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-5, (kernel, batch, heads)
print("same on 8 devices")
"""


def test_splash_and_sliced_are_split_over_images_and_heads():
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=1", "device_count=8")
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAME_UNDER_A_MESH]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "same on 8 devices" in done.stdout, done.stderr[-2000:]
