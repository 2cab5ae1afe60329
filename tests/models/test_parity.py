"""Our networks against diffusers and transformers: same weights, same outputs, same gradients."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcxr.interop.layout import from_torch
from jaxcxr.models import (
    AutoencoderKL,
    CLIPTextModel,
    ControlNetModel,
    UNet2DConditionModel,
    abstract,
    split_moments,
    with_parameters,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# A gradient that is zero in exact arithmetic is rounding noise in both, so it is held to the whole's norm.
NOISE = 1e-7

UNETS = {
    "sd1": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    },
    "sd2": {
        "in_channels": 9,
        "out_channels": 3,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": [2, 1],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": [12, 12],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "upcast_attention": True,
        "only_cross_attention": [False, True],
        "num_class_embeds": 5,
        "resnet_time_scale_shift": "scale_shift",
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "mid_block_scale_factor": 1.5,
        "time_embedding_dim": 24,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "norm_num_groups": 4,
        "norm_eps": 1e-4,
    },
    "attention without text": {
        "block_out_channels": [16, 32],
        "down_block_types": ["AttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["CrossAttnUpBlock2D", "AttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 12,
        "encoder_hid_dim": 7,
        "encoder_hid_dim_type": "text_proj",
        "downsample_padding": 0,
        "norm_num_groups": 8,
        "act_fn": "swish",
    },
}
LATENT_SIZES = {"sd1": (7, 5), "sd2": (8, 4), "attention without text": (4, 6)}

VAES = {
    "colour": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
    "grey, bare": {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 3,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    },
}

CLIPS = {
    act: {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "max_position_embeddings": 13,
        "hidden_act": act,
        "eos_token_id": eos,
    }
    for act, layers, eos in (("quick_gelu", 3, 39), ("gelu", 2, 2))
}


def randomize(module):
    """Draws every parameter, also those a fresh network has at 0 or 1, and returns them in our layout."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise + name.endswith("weight"))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return in_our_layout(module, lambda parameter: parameter)


def in_our_layout(module, value: Callable) -> dict[str, np.ndarray]:
    prefix = "text_model." if isinstance(module, transformers.CLIPTextModel) else ""
    named = {
        prefix + name.removeprefix("text_model."): value(parameter).detach().numpy()
        for name, parameter in module.named_parameters()
    }
    return dict(from_torch(name, array) for name, array in named.items())


def nchw(array: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).requires_grad_()


def nhwc(tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def relative(ours, theirs) -> float:
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def assert_gradients_match(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    total = np.sqrt(sum(np.linalg.norm(gradient) ** 2 for gradient in theirs.values()))
    for name, expected in theirs.items():
        error = np.linalg.norm(np.asarray(ours[name]) - expected)
        assert error <= GRADIENT_TOLERANCE * np.linalg.norm(expected) + NOISE * total, name


@dataclasses.dataclass
class Answer:
    """One library's answer: the output, and the gradients of a random projection of it."""

    output: np.ndarray
    gradients: dict[str, np.ndarray]


def run_ours(call: Callable, params: dict, inputs: dict, weights: np.ndarray) -> Answer:
    def loss(params, inputs):
        output = call(params, inputs)
        return jnp.sum(output * weights), output

    # Each network runs once, so compiling must be quick and running need not be.
    both = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        compiler_options={"xla_backend_optimization_level": "0"},
    )
    (_, output), (of_params, of_inputs) = both(params, inputs)
    return Answer(output, of_params | of_inputs)


def compare(ours: Answer, theirs: Answer) -> None:
    assert relative(ours.output, theirs.output) <= OUTPUT_TOLERANCE
    assert_gradients_match(ours.gradients, theirs.gradients)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str):
    config, size = UNETS[name], LATENT_SIZES[name]
    theirs = diffusers.UNet2DConditionModel(**config)
    params = randomize(theirs)
    model = abstract(UNet2DConditionModel, config)
    channels = model.config.in_channels
    sample, context = draw(2, *size, channels), draw(2, 5, config.get("encoder_hid_dim", 12), seed=1)
    timesteps = np.array([3, 871])
    labels = np.array([4, 0]) if "num_class_embeds" in config else None
    weights = draw(2, *size, model.config.out_channels, seed=2)

    torch_sample, torch_context = nchw(sample), torch.from_numpy(context).requires_grad_()
    torch_labels = None if labels is None else torch.from_numpy(labels)
    output = theirs(torch_sample, torch.from_numpy(timesteps), torch_context, class_labels=torch_labels).sample
    (output * nchw(weights)).sum().backward()
    gradients = in_our_layout(theirs, lambda parameter: parameter.grad)
    gradients |= {"sample": nhwc(torch_sample.grad), "context": torch_context.grad.numpy()}

    def call(params, inputs):
        return with_parameters(model, params)(inputs["sample"], timesteps, inputs["context"], labels)

    ours = run_ours(call, params, {"sample": sample, "context": context}, weights)
    compare(ours, Answer(nhwc(output), gradients))


CONTROLNETS = {"sd1": {"conditioning_embedding_out_channels": [4, 8, 12]}, "sd2": {"conditioning_channels": 1}}
_NO_LISTS = {
    "layers_per_block": 2,
    "transformer_layers_per_block": 2,
    "cross_attention_dim": 12,
}  # diffusers' takes none
_NOT_OF_A_CONTROLNET = {"up_block_types", "out_channels", "center_input_sample", "time_embedding_dim"}
_NOT_OF_A_CONTROLNET |= {"conv_in_kernel", "conv_out_kernel", "num_class_embeds"}
UNET_HALF = {key: value for key, value in UNETS["sd1"].items() if key not in _NOT_OF_A_CONTROLNET}


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnet(name: str):
    """Of a U-Net with its residuals: the output, and the gradients of the ControlNet and of the condition."""
    kept = {key: value for key, value in UNETS[name].items() if key not in _NOT_OF_A_CONTROLNET}
    kept |= _NO_LISTS if name == "sd2" else {}
    config, shared = CONTROLNETS[name] | kept, kept | {"up_block_types": UNETS[name]["up_block_types"]}
    theirs, their_unet = diffusers.ControlNetModel(**config), diffusers.UNet2DConditionModel(**shared)
    params, unet_params = randomize(theirs), randomize(their_unet)
    model, unet = abstract(ControlNetModel, config), abstract(UNet2DConditionModel, shared)
    halvings = len(model.config.conditioning_embedding_out_channels) - 1
    sample, context = draw(2, 6, 4, model.config.in_channels), draw(2, 5, 12, seed=1)
    condition = np.abs(draw(2, 6 * 2**halvings, 4 * 2**halvings, model.config.conditioning_channels, seed=3))
    timesteps, weights = np.array([3, 871]), draw(2, 6, 4, 4, seed=2)

    inputs = nchw(sample), torch.from_numpy(timesteps), torch.from_numpy(context)
    torch_condition = nchw(condition)
    down, mid = theirs(*inputs, controlnet_cond=torch_condition, return_dict=False)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    output = their_unet(*inputs, **added).sample
    (output * nchw(weights)).sum().backward()
    gradients = in_our_layout(theirs, lambda parameter: parameter.grad) | {"condition": nhwc(torch_condition.grad)}

    def call(params, inputs):
        residuals = with_parameters(model, params)(sample, timesteps, context, inputs["condition"])
        return with_parameters(unet, unet_params)(sample, timesteps, context, residuals=residuals)

    ours = run_ours(call, params, {"condition": condition}, weights)
    compare(ours, Answer(nhwc(output), gradients))


def test_a_new_controlnet_adds_nothing():
    model = ControlNetModel({**CONTROLNETS["sd1"], **UNET_HALF}, rngs=nnx.Rngs(0))
    found = model(draw(1, 4, 4, 4), np.array([3]), draw(1, 5, 12), draw(1, 16, 16, 3))
    assert len(found) == 5
    assert not any(np.any(each) for each in found)


@pytest.mark.parametrize("name", VAES)
def test_vae(name: str):
    config = VAES[name]
    theirs = diffusers.AutoencoderKL(**config)
    params = randomize(theirs)
    model = abstract(AutoencoderKL, config)
    # Halving 9 meets no padding at the far edge, halving 6 does.
    image = draw(2, 9, 6, model.config.in_channels)

    torch_image = nchw(image)
    posterior = theirs.encode(torch_image).latent_dist
    decoded = theirs.decode(posterior.mean).sample
    image_weights = draw(*nhwc(decoded).shape, seed=1)
    moment_weights = draw(*nhwc(posterior.logvar).shape, seed=2)
    loss = (decoded * nchw(image_weights)).sum() + (posterior.logvar * nchw(moment_weights)).sum()
    loss.backward()
    gradients = in_our_layout(theirs, lambda parameter: parameter.grad)
    gradients |= {"image": nhwc(torch_image.grad)}

    def call(params, inputs):
        vae = with_parameters(model, params)
        mean, logvar = split_moments(vae.encode(inputs["image"]))
        return jnp.concatenate([vae.decode(mean).ravel(), logvar.ravel()])

    weights = np.concatenate([image_weights.ravel(), moment_weights.ravel()])
    expected = np.concatenate([nhwc(decoded).ravel(), nhwc(posterior.logvar).ravel()])
    compare(run_ours(call, params, {"image": image}, weights), Answer(expected, gradients))


@pytest.mark.parametrize(("name", "length"), [("quick_gelu", 13), ("gelu", 4)])
def test_clip(name: str, length: int):
    config = CLIPS[name]
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    params = randomize(theirs)
    model = abstract(CLIPTextModel, config)
    ids = np.random.default_rng(0).integers(3, 38, (2, length))
    ids[:, -2:] = 39

    answer = theirs(torch.from_numpy(ids), output_hidden_states=True)
    weights = draw(2, length, 24)
    (answer.last_hidden_state * torch.from_numpy(weights)).sum().backward()
    gradients = in_our_layout(theirs, lambda parameter: parameter.grad)

    ours = run_ours(lambda params, _: with_parameters(model, params)(ids), params, {}, weights)
    compare(ours, Answer(answer.last_hidden_state.detach().numpy(), gradients))

    encoder = with_parameters(model, params)
    pooled = encoder.pool(ours.output, ids)
    assert relative(pooled, answer.pooler_output.detach().numpy()) <= OUTPUT_TOLERANCE
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    skipped = norm(answer.hidden_states[-2]).detach().numpy()
    assert relative(encoder(ids, clip_skip=1), skipped) <= OUTPUT_TOLERANCE


def test_clip_with_no_special_end_pools_at_the_highest_token():
    config = CLIPS["gelu"]
    model = abstract(CLIPTextModel, config)
    states = draw(1, 4, 24)
    assert np.array_equal(model.pool(states, np.array([[5, 9, 38, 7]]))[0], states[0, 2])


def test_moments_are_clipped_as_in_diffusers():
    moments = 40 * draw(1, 2, 2, 8)
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(nchw(moments))
    mean, logvar = split_moments(jnp.asarray(moments))
    assert np.array_equal(mean, nhwc(posterior.mean))
    assert np.array_equal(logvar, nhwc(posterior.logvar))
