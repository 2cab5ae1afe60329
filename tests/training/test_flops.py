import jax
import jax.numpy as jnp
import pytest

from jaxcxr import adaptation
from jaxcxr.adaptation import Adaptation
from jaxcxr.methods import make_loss
from jaxcxr.models import (
    AutoencoderKL,
    CLIPTextModel,
    UNet2DConditionModel,
    abstract,
    named_parameters,
    with_parameters,
)
from jaxcxr.plan.networks import describe
from jaxcxr.training import flops
from tests import pipelines
from tests.plan import runs

SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def network(cls, config):
    module = abstract(cls, config)
    return named_parameters(module), lambda parameters: with_parameters(module, parameters)


def test_products_and_convolutions_are_counted():
    assert flops.count(lambda a, b: jnp.tanh(a @ b), shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    image, kernel = shape(2, 8, 8, 4), shape(3, 3, 4, 6)

    def convolve(image, kernel, stride=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (stride, stride), "SAME", dimension_numbers=numbers)

    forward = 2 * 2 * 8 * 8 * 9 * 4 * 6
    assert flops.count(convolve, image, kernel) == forward
    assert flops.count(lambda i, k: convolve(i, k, 2), image, kernel) == forward / 4

    def gradients(stride):
        return jax.grad(lambda i, k: (convolve(i, k, stride) ** 2).sum(), argnums=(0, 1))

    # Each gradient costs the forward; zeros put between the pixels by the stride are no work.
    assert flops.count(gradients(1), image, kernel) == 3 * forward
    assert flops.count(gradients(2), image, kernel) == 3 * forward / 4


def test_what_each_device_does_counts_for_all():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def product(a, b):
        return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))(a, b)

    assert flops.count(product, shape(8, 5), shape(5, 7)) == 2 * 8 * 5 * 7


def test_loops_count_their_turns_and_branches_the_longest():
    def loop(a):
        return jax.lax.scan(lambda carry, _: (carry @ a, None), a, length=5)[0]

    assert flops.count(loop, shape(4, 4)) == 5 * 2 * 4**3
    assert flops.count(lambda a: jax.lax.cond(True, lambda: a @ a @ a, lambda: a @ a), shape(4, 4)) == 2 * 2 * 4**3
    with pytest.raises(NotImplementedError, match="while_loop"):
        flops.count(lambda a: jax.lax.while_loop(lambda b: b.sum() > 0, lambda b: b @ a, a), shape(4, 4))


def test_a_network_costs_what_xla_counts():
    parameters, build = network(UNet2DConditionModel, pipelines.UNET)

    def loss(parameters, *inputs):
        return (build(parameters)(*inputs) ** 2).sum()

    inputs = shape(2, 8, 8, 4), shape(2, dtype=jnp.int32), shape(2, 77, 32)
    compiled = jax.jit(jax.grad(loss)).lower(parameters, *inputs).compile()
    # XLA leaves out what padding meets, a ninth and more of these small images, and counts activations.
    assert flops.count(jax.grad(loss), parameters, *inputs) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.1)


def test_published_figures():
    """Forward at 512², in teraFLOPs an image: U-Net and autoencoder of Stable Diffusion 2, CLIP of 1."""
    parameters, build = network(UNet2DConditionModel, SD2_UNET)
    inputs = shape(1, 64, 64, 4), shape(1, dtype=jnp.int32), shape(1, 77, 1024)
    assert flops.count(lambda p, *x: build(p)(*x), parameters, *inputs) / 1e12 == pytest.approx(0.804, abs=0.001)
    parameters, build = network(AutoencoderKL, SD_VAE)
    assert flops.count(lambda p, x: build(p).encode(x), parameters, shape(1, 512, 512, 3)) / 1e12 == pytest.approx(
        1.12, abs=0.01
    )
    assert flops.count(lambda p, x: build(p).decode(x), parameters, shape(1, 64, 64, 4)) / 1e12 == pytest.approx(
        2.51, abs=0.01
    )
    parameters, build = network(CLIPTextModel, TEXT)
    tokens = shape(1, 77, dtype=jnp.int32)
    # 85 M parameters twice for each of 77 tokens, and the scores.
    assert flops.count(lambda p, x: build(p)(x), parameters, tokens) == pytest.approx(2 * 85e6 * 77, rel=0.03)


def test_only_what_learns_is_paid_for():
    def loss(parameters, batch, keys):
        hidden = jnp.tanh(batch["x"] @ parameters["a"])
        return ((hidden @ parameters["b"]) ** 2).sum(-1), {}

    parameters, batch = {"a": shape(8, 8), "b": shape(8, 8)}, {"x": shape(4, 8)}
    product = 2 * 4 * 8 * 8
    assert (
        flops.of_training(loss, Adaptation(frozenset("b"), {}), parameters, batch) == 3 * product
    )  # forward, and the gradient of b
    assert (
        flops.of_training(loss, Adaptation(frozenset("ab"), {}), parameters, batch) == 5 * product
    )  # of a as well, and between


@pytest.mark.parametrize("cached", [False, True])
def test_a_steps_work_is_that_of_its_whole_batch(cached):
    config = runs.diffusion(batch_size=3, trainable=r"unet\..*")
    pipeline = describe(config)
    learning = adaptation.of(config, pipeline.parameters())
    prompts = {"states": shape(3, 77, 16)} if cached else {"input_ids": shape(3, 77, dtype=jnp.int32)}
    batch = {"moments": shape(3, 16, 16, 8), **prompts}
    whole = flops.of_training(make_loss(pipeline, config), learning, pipeline.parameters(), batch)
    assert flops.of_step(config, pipeline, learning, batch) == whole
