"""Gradients that are written out, against those that autodiff finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcxr.models import with_parameters
from jaxcxr.models.attention import GEGLU
from jaxcxr.models.layers import group_norm, layer_norm


def plain_group_norm(x, scale, bias, groups=4):
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = (f(parts, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    return ((parts - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias


def plain_layer_norm(x, scale, bias):
    mean, variance = (f(x, axis=-1, keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda dtype: group_norm(8, 4, epsilon=1e-5, dtype=dtype, rngs=nnx.Rngs(0)), plain_group_norm),
        (lambda dtype: layer_norm(8, dtype=dtype, rngs=nnx.Rngs(0)), plain_layer_norm),
    ],
)
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_norms_and_their_gradients(build, plain, dtype, rounding):
    rng = np.random.default_rng(0)
    # A mean that is large beside the spread, by which one pass would cancel.
    x = jnp.asarray(100 * (dtype == "float32") + rng.standard_normal((2, 6, 5, 8)), dtype)
    scale, bias, along = (jnp.asarray(rng.standard_normal(n), jnp.float32) for n in (8, 8, x.shape))

    def ours(x, scale, bias):
        return with_parameters(build(jnp.dtype(dtype)), {"scale": scale, "bias": bias})(x)

    with jax.enable_x64(True):
        right, pull = jax.vjp(lambda x, *affine: plain(x.astype(jnp.float64), *affine), x, scale, bias)
        right = right, *pull(along.astype(jnp.float64))
    found, pull = jax.vjp(ours, x, scale, bias)
    found = found, *pull(along.astype(found.dtype))
    assert [leaf.dtype for leaf in found] == [x.dtype, x.dtype, jnp.float32, jnp.float32]
    for a, b in zip(found, right, strict=True):
        a, b = (np.asarray(leaf, np.float64) for leaf in (a, b))
        assert np.abs(a - b).max() < rounding * np.abs(b).max()


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_the_gate_and_its_gradient(dtype, rounding):
    layer = GEGLU(3, 4, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(4 * rng.standard_normal((3, 8)), jnp.float32)  # gates far out on both sides
    x = jnp.asarray(rng.standard_normal((7, 3)), dtype)
    along = jnp.asarray(rng.standard_normal((7, 4)), jnp.float32)

    def ours(kernel, x):
        own = with_parameters(layer, {"proj.kernel": kernel, "proj.bias": jnp.zeros(8)})
        return (own(x).astype(jnp.float32) * along).sum()

    def expected(kernel, x):
        value, gate = jnp.split(x @ kernel.astype(x.dtype), 2, axis=-1)
        return (value.astype(jnp.float32) * jax.nn.gelu(gate.astype(jnp.float32), approximate=False) * along).sum()

    for found, right in zip(jax.grad(ours, (0, 1))(kernel, x), jax.grad(expected, (0, 1))(kernel, x), strict=True):
        assert found.dtype == right.dtype
        error = np.abs(found.astype(jnp.float32) - right.astype(jnp.float32)).max()
        assert error < rounding * float(jnp.abs(right).max())
