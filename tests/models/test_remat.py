"""Rematerialization: the same values and gradients in less memory, and only when asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcxr.errors import UserError
from jaxcxr.models import (
    AutoencoderKL,
    UNet2DConditionModel,
    abstract,
    named_parameters,
    specialize,
    with_parameters,
)
from jaxcxr.models.attention import SelfAttention2D, Transformer2DModel
from jaxcxr.models.layers import ResnetBlock2D

UNET = {
    "block_out_channels": [16],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "norm_num_groups": 8,
}
VAE = {"block_out_channels": [16], "norm_num_groups": 8}


def unet_loss(module, params, size):
    """A number that every parameter of the U-Net moves."""
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.standard_normal((2, size, size, 4), np.float32))
    words = jnp.asarray(rng.standard_normal((2, 5, 12), np.float32))
    return jnp.square(with_parameters(module, params)(image, jnp.array([3, 700]), words)).mean()


def vae_loss(module, params, size):
    """A number that every parameter of the autoencoder moves."""
    image = jnp.asarray(np.random.default_rng(1).standard_normal((2, size, size, 3), np.float32))
    vae = with_parameters(module, params)
    return jnp.square(vae.decode(vae.encode(image)[..., :4])).mean()


NETWORKS = [
    pytest.param(UNet2DConditionModel, UNET, unet_loss, id="unet"),
    pytest.param(AutoencoderKL, VAE, vae_loss, id="vae"),
]


def blocks():
    """A module of every kind that can be one block, and what it is called with."""
    rng = np.random.default_rng(2)
    common = {"groups": 4, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    image, skip = (jnp.asarray(rng.standard_normal((2, 6, 6, width)), jnp.float32) for width in (16, 8))
    temb, words = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 12), (2, 5, 12)))
    resnet = ResnetBlock2D(24, 16, temb_channels=12, epsilon=1e-5, **common)
    transformer = Transformer2DModel(
        16,
        heads=2,
        num_layers=1,
        context_dim=12,
        use_linear_projection=True,
        only_cross_attention=False,
        **common,
    )
    yield pytest.param(resnet, (image, temb, skip), id="resnet")
    yield pytest.param(transformer, (image, words), id="transformer")
    yield pytest.param(SelfAttention2D(16, head_dim=8, epsilon=1e-5, **common), (image,), id="self-attention")


@pytest.mark.parametrize(("block", "inputs"), blocks())
def test_values_and_gradients_stay(block, inputs):
    def gradients(remat):
        module = specialize(block, remat=remat, platform="cpu")

        def loss(params, inputs):
            return jnp.square(with_parameters(module, params)(*inputs)).mean()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(named_parameters(block), inputs)

    expected, *rest = (jax.tree.leaves(gradients(remat)) for remat in ("none", "attention", "blocks"))
    assert len(expected) == 1 + len(named_parameters(block)) + len(inputs)
    assert sum(np.abs(leaf).max() > 1e-6 for leaf in expected) >= len(expected) - 1  # a key's bias moves nothing
    for found in rest:
        for leaf, reference in zip(found, expected, strict=True):
            assert np.allclose(leaf, reference, rtol=1e-5, atol=1e-7)


def kept(cls, config, loss, remat):
    """Bytes that the backward pass needs of the forward one, parameters aside, at 1,024 tokens."""
    network = specialize(abstract(cls, config), attention="xla", remat=remat, platform="cpu")
    params = named_parameters(network)

    def pullback(params):
        return jax.vjp(lambda params: loss(network, params, 32), params)[1]

    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(pullback, params))]
    return sum(sizes) - sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())


# XLA's CPU compiler merges what is computed again with what was computed before, so the memory of a program
# compiled for CPUs does not fall. That of one for TPUs does: tests/models/test_compiled_for.py.
@pytest.mark.parametrize(("cls", "config", "loss"), NETWORKS)
def test_less_is_kept_for_the_backward_pass(cls, config, loss):
    whole, scoreless, inputs = (kept(cls, config, loss, remat) for remat in ("none", "attention", "blocks"))
    # Every self-attention keeps its float32 scores once or more: 4 heads in the U-Net, 1 in the autoencoder.
    attentions, heads = (4, 4) if cls is UNet2DConditionModel else (2, 1)
    assert whole - scoreless > attentions * 2 * heads * 1024**2 * 4
    # A block keeps one image of 16 channels, two where it takes in a skip; nothing is left of what is in between.
    assert 12 * 2 * 1024 * 16 * 4 < inputs < 40 * 2 * 1024 * 16 * 4
    assert inputs < 0.25 * scoreless


def test_a_specialized_network_is_a_copy():
    network = abstract(UNet2DConditionModel, UNET)
    other = specialize(network, remat="blocks", platform="tpu")
    block = "down_blocks", 0, "resnets", 0

    def reach(module):
        for part in block:
            module = module[part] if isinstance(part, int) else getattr(module, part)
        return module.compute

    assert (reach(other).remat, reach(other).platform) == ("blocks", "tpu")
    assert (reach(network).remat, reach(network).platform) == ("none", "cpu")


def test_unknown_values_are_refused():
    network = abstract(AutoencoderKL, VAE)
    with pytest.raises(UserError, match=r"config\.remat='all': may be none, blocks or attention"):
        specialize(network, remat="all", platform="cpu")
