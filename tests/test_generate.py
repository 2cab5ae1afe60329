import jax
import jax.numpy as jnp

from jaxcxr import interop
from jaxcxr.generate import make_generate
from jaxcxr.parallel.mesh import make_mesh
from tests import pipelines


def test_pictures_are_drawn_with_the_kernels_that_the_run_has(tmp_path):
    pipeline = interop.load(pipelines.write(tmp_path / "base"))
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    batch = {"ids": jnp.zeros((2, 1, 77), jnp.int32), "weights": jnp.ones((2, 1)), "noise": jnp.zeros((2, 8, 8, 4))}
    inputs = batch, jax.random.split(jax.random.key(0), 2)

    def uses_splash(attention):
        generate = make_generate(pipeline, pipeline.sampler().sampler(2), mesh, attention)
        return "pallas_call" in str(jax.jit(generate).trace(pipeline.parameters(), *inputs).jaxpr)

    assert not uses_splash("auto")  # on a CPU
    assert uses_splash("splash")
