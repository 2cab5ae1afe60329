"""What networks are compiled with, and compute in, by platform."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.models.compute import compiler_options, usual_dtype


def mesh(platform):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(("gradient", "kernels"), [(False, True), (True, False)])
def test_sums_on_cpus_are_ynns_where_no_gradient_is_taken(gradient, kernels):
    options = compiler_options(mesh("cpu"), gradient=gradient)
    softmax = jax.jit(lambda x: jax.nn.softmax(x, axis=-1), compiler_options=options)
    text = softmax.lower(jax.ShapeDtypeStruct((512, 1024), jnp.float32)).compile().as_text()
    assert ("ynn_fusion" in text) == kernels


@pytest.mark.parametrize("platform", ["gpu", "cuda", "tpu"])
def test_other_platforms_have_the_compilers_own_options(platform):
    assert compiler_options(mesh(platform)) is None
    assert compiler_options(mesh(platform), gradient=True) is None


def test_accelerators_draw_in_half_precision():
    assert [usual_dtype(platform) for platform in ("cpu", "gpu", "cuda", "tpu")] == ["float32"] + ["bfloat16"] * 3
