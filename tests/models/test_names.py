"""Every parameter has the name and the shape it has on disk, at full size and without memory."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel, abstract, named_parameters

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD21_UNET = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "num_class_embeds": None,
    "sample_size": 96,
}
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "num_hidden_layers": 12,
}
SD21_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
}


def clip(**config):
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))


def epsilons(module: nnx.Module) -> dict[str, float]:
    """Of every norm: outputs of random weights are too coarse a test of them."""
    return {
        ".".join(map(str, path)).removeprefix("text_model."): node.epsilon
        for path, node in nnx.iter_modules(module)
        if hasattr(node, "epsilon")
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "config"),
    [
        pytest.param(UNet2DConditionModel, "UNet2DConditionModel", SD15_UNET, id="sd1.5-unet"),
        pytest.param(UNet2DConditionModel, "UNet2DConditionModel", SD21_UNET, id="sd2.1-unet"),
        pytest.param(AutoencoderKL, "AutoencoderKL", SD_VAE, id="vae"),
        pytest.param(CLIPTextModel, None, SD15_TEXT, id="sd1.5-text"),
        pytest.param(CLIPTextModel, None, SD21_TEXT, id="sd2.1-text"),
    ],
)
def test_full_size_names_and_shapes(ours, theirs, config):
    with torch.device("meta"):
        module = getattr(diffusers, theirs)(**config) if theirs else clip(**config)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if theirs is None:
        # Files have the prefix; transformers 5 has it in files alone.
        expected = {"text_model." + name.removeprefix("text_model."): s for name, s in expected.items()}
    assert epsilons(abstract(ours, config)) == {
        name.removeprefix("text_model."): module.eps
        for name, module in module.named_modules()
        if hasattr(module, "eps")
    }
    # A view of one number has a shape and axes to permute, and takes no memory.
    views = {
        name: np.broadcast_to(np.float32(0), leaf.shape)
        for name, leaf in named_parameters(abstract(ours, config)).items()
    }
    renamed = dict(to_torch(name, view) for name, view in views.items())
    assert len(renamed) == len(views)
    assert {name: view.shape for name, view in renamed.items()} == expected
    back = dict(from_torch(name, view) for name, view in renamed.items())
    assert {name: view.shape for name, view in back.items()} == {n: v.shape for n, v in views.items()}


def test_the_configurations_that_the_libraries_write_are_read():
    transformers_config = transformers.CLIPTextConfig().to_dict()
    assert abstract(CLIPTextModel, transformers_config).config.hidden_size == 512
    with torch.device("meta"):
        unet_config = dict(diffusers.UNet2DConditionModel(**SD15_UNET).config)
        vae_config = dict(diffusers.AutoencoderKL(**SD_VAE).config)
    assert abstract(UNet2DConditionModel, unet_config).config.cross_attention_dim == 768
    assert abstract(AutoencoderKL, vae_config).config.scaling_factor == 0.18215


def test_abstract_parameters_are_float32_shapes():
    leaves = named_parameters(abstract(AutoencoderKL, {}, jax.numpy.bfloat16)).values()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == np.float32 for leaf in leaves)
