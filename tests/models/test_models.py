"""What the networks promise beyond agreeing with PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcxr.errors import UserError
from jaxcxr.models import (
    AutoencoderKL,
    CLIPTextModel,
    UNet2DConditionModel,
    abstract,
    initial_parameters,
    named_parameters,
    with_parameters,
)

UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "norm_num_groups": 8,
}
VAE = {"block_out_channels": [16], "norm_num_groups": 8}
CLIP = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
}


def call(module: nnx.Module) -> jax.Array:
    """The network's output for fixed inputs."""
    graphdef, state = nnx.split(module)
    # Each network runs once, so compiling must be quick and running need not be.
    jitted = jax.jit(
        lambda state: _call(nnx.merge(graphdef, state)),
        compiler_options={"xla_backend_optimization_level": "0"},
    )
    return jitted(state)


def _call(module: nnx.Module) -> jax.Array:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 8, 8, 4), np.float32)
    match module:
        case UNet2DConditionModel():
            return module(image, jnp.array([1, 999]), rng.standard_normal((2, 3, 12), np.float32))
        case AutoencoderKL():
            return module.decode(module.encode(image[..., :3])[..., :4])
        case _:
            return module(np.arange(12).reshape(2, 6))


NETWORKS = [
    pytest.param(UNet2DConditionModel, UNET, id="unet"),
    pytest.param(AutoencoderKL, VAE, id="vae"),
    pytest.param(CLIPTextModel, CLIP, id="clip"),
]


@pytest.mark.parametrize(("cls", "config"), NETWORKS)
def test_bfloat16_computes_close_and_keeps_float32_parameters(cls, config):
    module = abstract(cls, config)
    rng = np.random.default_rng(0)
    params = {
        name: (0.2 * rng.standard_normal(leaf.shape) + name.endswith("scale")).astype(np.float32)
        for name, leaf in named_parameters(module).items()
    }
    module = with_parameters(module, params)
    exact = call(module)
    half = with_parameters(abstract(cls, config, jnp.bfloat16), params)
    rounded = call(half)
    assert rounded.dtype == jnp.bfloat16
    assert exact.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in named_parameters(half).values())
    error = jnp.linalg.norm(rounded.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert error < 0.05


@pytest.mark.parametrize(("cls", "config"), NETWORKS[2:])
def test_initial_parameters_depend_on_the_key_alone(cls, config):
    first, again, other = (initial_parameters(cls, config, jax.random.key(seed)) for seed in (0, 0, 1))
    reference = named_parameters(abstract(cls, config))
    assert list(first) == list(again) == list(reference)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    kernels = [name for name in first if name.endswith("kernel")]
    assert not any(np.array_equal(first[name], other[name]) for name in kernels)
    assert all(leaf.shape == reference[name].shape for name, leaf in first.items())


@pytest.mark.parametrize(("cls", "config"), NETWORKS)
def test_a_module_holds_parameters_and_nothing_else(cls, config):
    module = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    assert not nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
    assert list(named_parameters(module)) == list(named_parameters(abstract(cls, config)))


def test_initial_kernels_are_pytorchs():
    kernel = initial_parameters(AutoencoderKL, VAE, jax.random.key(0))["decoder.conv_in.kernel"]
    bound = (9 * 4) ** -0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    assert np.isclose(kernel.std(), bound / 3**0.5, rtol=0.1)


def test_the_module_given_is_left_alone():
    module = CLIPTextModel(CLIP, rngs=nnx.Rngs(0))
    before = named_parameters(module)
    zeroed = with_parameters(module, {name: jnp.zeros_like(leaf) for name, leaf in before.items()})
    assert not np.any(call(zeroed))
    assert all(np.array_equal(leaf, before[name]) for name, leaf in named_parameters(module).items())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_wrong_parameters_are_named(fault):
    model = abstract(AutoencoderKL, VAE)
    params = {name: np.zeros(leaf.shape, np.float32) for name, leaf in named_parameters(model).items()}
    name = "encoder.conv_in.kernel"
    if fault == "missing":
        del params[name]
    elif fault == "unexpected":
        name = "encoder.conv_ni.kernel"
        params[name] = np.zeros(3)
    else:
        params[name] = np.zeros((3, 3, 1, 16))
    with pytest.raises(UserError, match=name):
        with_parameters(model, params)


def test_a_mistaken_call_is_explained():
    encoder = CLIPTextModel(CLIP, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="max_position_embeddings"):
        encoder(np.zeros((1, 7), int))
    with pytest.raises(UserError, match="clip_skip"):
        encoder(np.zeros((1, 6), int), clip_skip=3)
    unet = abstract(UNet2DConditionModel, UNET | {"num_class_embeds": 3})
    with pytest.raises(UserError, match="class_labels"):
        unet(np.zeros((1, 8, 8, 4)), np.array([1]), np.zeros((1, 3, 12)))


def test_an_odd_size_halved_without_padding_is_refused():
    model = abstract(UNet2DConditionModel, UNET | {"downsample_padding": 0})
    with pytest.raises(UserError, match="downsample_padding"):
        nnx.eval_shape(lambda m: m(jnp.zeros((1, 7, 8, 4)), jnp.array([1]), jnp.zeros((1, 3, 12))), model)
