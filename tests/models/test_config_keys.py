"""Every key of the configs of diffusers and transformers: honoured as there, to the output, or refused by name."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop.layout import from_torch
from jaxcxr.models.bert import BertModel
from jaxcxr.models.clip import CLIPTextModel
from jaxcxr.models.controlnet import ControlNetModel
from jaxcxr.models.named import abstract, with_parameters
from jaxcxr.models.unet import UNet2DConditionModel
from jaxcxr.models.vae import AutoencoderKL, split_moments

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((1, 4, 8, 8), dtype=np.float32)
PICTURE = RNG.standard_normal((1, 3, 8, 8), dtype=np.float32)
STATES = RNG.standard_normal((1, 5, 16), dtype=np.float32)
IDS = np.array([[3, 7, 1, 9, 2, 0]])

TINY = {
    "UNet2DConditionModel": {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    },
    "AutoencoderKL": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    },
    "CLIPTextConfig": {
        "vocab_size": 12,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "projection_dim": 16,
        "bos_token_id": 10,
        "eos_token_id": 11,
    },
}
TINY["ControlNetModel"] = {
    key: value for key, value in TINY["UNet2DConditionModel"].items() if key not in ("sample_size", "up_block_types")
} | {"conditioning_embedding_out_channels": (4, 8)}
TINY["BertConfig"] = {key: value for key, value in TINY["CLIPTextConfig"].items() if key != "projection_dim"} | {
    "max_position_embeddings": 12,
    "model_type": "bert",
}
TINY["RobertaConfig"] = TINY["BertConfig"] | {"model_type": "roberta"}

# Values of another kind than a default's, or that the rules below would not come to.
OTHERS = {
    "act_fn": ["swish", "gelu"],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "mid_block_type": ["UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn"],
    "resnet_time_scale_shift": ["scale_shift"],
    "down_block_types": [("CrossAttnDownBlock2D", "AttnDownBlock2D"), ("DownBlock2D", "SimpleCrossAttnDownBlock2D")],
    "up_block_types": [("AttnUpBlock2D", "CrossAttnUpBlock2D"), ("UpBlock2D", "UpBlock2D")],
    "block_out_channels": [(16, 16), (32, 24)],
    "norm_num_groups": [4, 3],
    "conv_in_kernel": [1, 5],
    "conv_out_kernel": [1, 5],
    "class_embed_type": ["timestep", "identity"],
    "addition_embed_type": ["text"],
    "encoder_hid_dim_type": ["text_proj", "image_proj"],
    "time_embedding_type": ["fourier"],
    "time_embedding_act_fn": ["silu"],
    "timestep_post_act": ["silu"],
    "attention_type": ["gated"],
    "cross_attention_norm": ["layer_norm"],
    "latents_mean": [[0.1] * 4],
    "latents_std": [[0.5] * 4],
    "shift_factor": [0.1, 0.0],
    "only_cross_attention": [True, (False, True)],
    "layers_per_block": [2],
    "attention_head_dim": [4, 3],
    "hidden_size": [17, 32],
    "classifier_dropout": [0.5],
    "dtype": ["float16"],
    "architectures": [["X"]],
    "id2label": [{"0": "a"}],
    "label2id": [{"a": 0}],
    "problem_type": ["regression"],
    "num_attention_heads": [1, 3],
    "pad_token_id": [0, 5],
    "in_channels": [9, 1],
    "conditioning_embedding_out_channels": [(4, 8, 12), (6,)],
    "controlnet_conditioning_channel_order": ["bgr"],
}
OF_NONE = [16, True, "x"]
HEAD_KEYS = {"transformers_version"}  # what every file says of its writer


def others(key, default):
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [2 * default]
    if isinstance(default, float):
        return [default + 0.25]
    assert default is None, (key, default)
    return OF_NONE


def owner(name):
    return getattr(diffusers, name, None) or getattr(transformers, name)


def cases():
    for name, tiny in TINY.items():
        for key, parameter in inspect.signature(owner(name).__init__).parameters.items():
            if key != "self" and key not in HEAD_KEYS:
                default = tiny.get(key, parameter.default)
                for value in others(key, default):
                    if value != default or type(value) is not type(default):
                        yield pytest.param(name, key, value, id=f"{name}-{key}-{str(value)[:20]}")


def parameters(model):
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def ours(cls, config, state, prefix=""):
    named = dict(from_torch(prefix + key, value) for key, value in state.items() if "position_ids" not in key)
    return with_parameters(abstract(cls, config), {name: jnp.asarray(value) for name, value in named.items()})


def nhwc(array):
    return jnp.asarray(array).transpose(0, 2, 3, 1)


def run_unet(config):
    """Theirs is made only after ours has not refused."""
    model = abstract(UNet2DConditionModel, config)
    if model.config.num_class_embeds is not None:
        raise UserError("num_class_embeds")  # StableDiffusion.require_text_alone
    torch.manual_seed(0)
    reference = diffusers.UNet2DConditionModel(**config).eval()
    latents = np.resize(LATENTS, (1, config.get("in_channels", 4), 8, 8))
    states = np.resize(STATES, (1, 5, config.get("encoder_hid_dim") or config["cross_attention_dim"]))
    with torch.no_grad():
        expected = reference(*map(torch.from_numpy, (latents, np.array([7]), states))).sample.numpy()
    network = ours(UNet2DConditionModel, config, parameters(reference))
    found = network(nhwc(latents), jnp.array([7]), jnp.asarray(states))
    return [(np.asarray(found).transpose(0, 3, 1, 2), expected)]


def run_controlnet(config):
    model = abstract(ControlNetModel, config)
    torch.manual_seed(0)
    reference = diffusers.ControlNetModel(**config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # those that are zero at first too
            parameter.add_(0.1 * torch.randn(parameter.shape))
    side = 8 * 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)
    condition = np.resize(PICTURE, (1, config.get("conditioning_channels", 3), side, side))
    latents = np.resize(LATENTS, (1, config.get("in_channels", 4), 8, 8))
    states = np.resize(STATES, (1, 5, config["cross_attention_dim"]))
    with torch.no_grad():
        given = map(torch.from_numpy, (latents, np.array([7]), states, condition))
        down, middle = reference(*given, return_dict=False)
    network = ours(ControlNetModel, config, parameters(reference))
    found = network(nhwc(latents), jnp.array([7]), jnp.asarray(states), network.embed(nhwc(condition)))
    expected = [each.numpy() for each in (*down, middle)]
    return [(np.asarray(one).transpose(0, 3, 1, 2), other) for one, other in zip(found, expected, strict=True)]


def run_vae(config):
    abstract(AutoencoderKL, config)
    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL(**config).eval()
    picture = np.resize(PICTURE, (1, config.get("in_channels", 3), 8, 8))
    with torch.no_grad():
        mean = reference.encode(torch.from_numpy(picture)).latent_dist.mean
        decoded = reference.decode(mean).sample.numpy()
    network = ours(AutoencoderKL, config, parameters(reference))
    encoded = split_moments(network.encode(nhwc(picture)))[0]
    pairs = [(encoded, mean.numpy()), (network.decode(nhwc(mean.numpy())), decoded)]
    assert network.config.scaling_factor == reference.config.scaling_factor
    return [(np.asarray(found).transpose(0, 3, 1, 2), expected) for found, expected in pairs]


def run_text(name, config):
    cls, model = {
        "CLIPTextConfig": (CLIPTextModel, transformers.CLIPTextModel),
        "BertConfig": (BertModel, transformers.BertModel),
        "RobertaConfig": (BertModel, transformers.RobertaModel),
    }[name]
    abstract(cls, config)
    torch.manual_seed(0)
    own = {key: value for key, value in config.items() if key != "model_type"}
    reference = model(owner(name)(**own)).eval().float()
    with torch.no_grad():
        expected = reference(torch.from_numpy(IDS))[0].numpy()
    state = parameters(reference)
    prefix = "text_model." if cls is CLIPTextModel and not next(iter(state)).startswith("text_model.") else ""
    return [(np.asarray(ours(cls, config, state, prefix)(jnp.asarray(IDS))), expected)]


@pytest.mark.parametrize(("name", "key", "value"), cases())
def test_a_key_is_honoured_as_its_library_does_or_refused_by_name(name, key, value):
    config, refusal = TINY[name] | {key: value}, None
    try:
        if name == "UNet2DConditionModel":
            pairs = run_unet(config)
        elif name == "ControlNetModel":
            pairs = run_controlnet(config)
        elif name == "AutoencoderKL":
            pairs = run_vae(config)
        else:
            pairs = run_text(name, config)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert key in refusal
        return
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
