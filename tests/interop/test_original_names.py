"""The names of the original layout, and the configs told from it, against diffusers and the published ones."""

import json

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop import single_file
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.original_names import PREFIXES, place
from jaxcxr.interop.pipeline import from_files
from tests import pipelines
from tests.interop.originals import (  # noqa: F401
    CONFIGS,
    SD1,
    SD2,
    TEXTS,
    TINY,
    UNETS,
    VAES,
    as_files,
    assert_same,
    checkpoint_of,
    each_network_is_traced_once,
    folder_of,
    load,
    original_shapes,
    torch_names,
    utils,
    written,
    zeros,
)

pytestmark = pytest.mark.usefixtures("each_network_is_traced_once")


@pytest.fixture(scope="module")
def sd1():
    return original_shapes(SD1)


@pytest.fixture(scope="module")
def sd2():
    return original_shapes(SD2)


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_diffusers_reads_the_unet_as_it_was(config, tmp_path):
    utils_ = utils()
    checkpoint, file = written({"unet": config}, tmp_path)
    diffusers_config = {"layers_per_block": 2} | config
    assert_same(utils_.convert_ldm_unet_checkpoint(load(file), diffusers_config), torch_names(checkpoint, "unet"))


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_the_unets_names_are_those_of_diffusers_module(config):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config).state_dict()
    ours = torch_names(checkpoint_of({"unet": config}), "unet")
    assert {key: tuple(value.shape) for key, value in theirs.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("config", VAES.values(), ids=VAES)
def test_diffusers_reads_the_autoencoder_as_it_was(config, tmp_path):
    utils_ = utils()
    checkpoint, file = written({"vae": config}, tmp_path)
    original = load(file)
    assert original["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    assert_same(utils_.convert_ldm_vae_checkpoint(original, config), torch_names(checkpoint, "vae"))


def test_diffusers_reads_the_text_encoder_of_sd1_as_it_was(tmp_path):
    utils_ = utils()
    checkpoint, file = written({"text_encoder": TEXTS["quick_gelu"]}, tmp_path)
    assert_same(utils_.convert_ldm_clip_checkpoint(load(file)), torch_names(checkpoint, "text_encoder"))


def test_diffusers_reads_the_text_encoder_of_sd2_as_it_was(tmp_path):
    utils_, transformers = utils(), pytest.importorskip("transformers")
    checkpoint, file = written({"text_encoder": TEXTS["gelu"]}, tmp_path)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXTS["gelu"]))
    assert_same(utils_.convert_open_clip_checkpoint(model, load(file)), torch_names(checkpoint, "text_encoder"))


def test_diffusers_loads_modules_from_a_written_file(tmp_path):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    checkpoint, file = written(TINY, tmp_path)
    folder = folder_of(checkpoint.files, tmp_path / "config")
    for network, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        module = cls.from_single_file(str(file), config=str(folder), subfolder=network, local_files_only=True)
        assert_same(module.state_dict(), torch_names(checkpoint, network))


def test_the_names_of_sd1_are_the_known_ones(sd1):
    count = {network: sum(key.startswith(prefix) for key in sd1) for network, prefix in PREFIXES.items()}
    assert count == {"unet": 686, "vae": 248, "text_encoder": 196}
    unet = "model.diffusion_model."
    assert sd1[f"{unet}input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    assert sd1[f"{unet}input_blocks.7.0.skip_connection.weight"] == (1280, 640, 1, 1)
    assert sd1[f"{unet}output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert sd1[f"{unet}output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert sd1[f"{unet}output_blocks.8.2.conv.weight"] == (640, 640, 3, 3)
    assert sd1[f"{unet}output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight"] == (2560, 320)
    assert sd1["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert sd1["first_stage_model.encoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)


def test_levels_may_have_layers_of_their_own():
    config = UNETS["one layer, attention outside"] | {"layers_per_block": [1, 2]}
    keys = {
        "down_blocks.1.resnets.1.conv1.bias": "input_blocks.4.0.in_layers.2.bias",
        "up_blocks.0.upsamplers.0.conv.bias": "output_blocks.2.1.conv.bias",
        "up_blocks.1.attentions.0.norm.bias": "output_blocks.3.1.norm.bias",
        "up_blocks.1.resnets.1.norm2.bias": "output_blocks.4.0.out_layers.0.bias",
    }
    for name, key in keys.items():
        assert place("unet", name, config).key == f"model.diffusion_model.{key}"


@pytest.mark.parametrize("configs", [SD1, SD2], ids=["SD 1.5", "SD 2.1"])
def test_diffusers_gives_the_whole_models_the_same_names(configs):
    utils_, torch = utils(), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    original = {key: torch.empty(shape, device="meta") for key, shape in original_shapes(configs).items()}
    with torch.device("meta"):
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"]))
    if configs is SD1:
        text = utils_.convert_ldm_clip_checkpoint(original)
    else:
        text = utils_.convert_open_clip_checkpoint(model, original)
    theirs = {
        "unet": utils_.convert_ldm_unet_checkpoint(original, {"layers_per_block": 2} | configs["unet"]),
        "vae": utils_.convert_ldm_vae_checkpoint(original, configs["vae"]),
        "text_encoder": text,
    }
    for full_name, value in from_files(as_files(configs)).parameters().items():
        network, _, name = full_name.partition(".")
        torch_name, stand_in = to_torch(name, np.broadcast_to(np.float32(0), value.shape))
        there = theirs[network].pop(torch_name)
        assert tuple(there.shape) == stand_in.shape
        where = place(network, torch_name, configs[network])
        if where.third is None and not where.pointwise:
            assert there is original[where.key], full_name  # it hands most tensors through
    assert not any(theirs.values())


def read_zeros(monkeypatch, shapes, **options):
    monkeypatch.setattr(single_file, "open_safetensors", lambda path: zeros(shapes))
    return single_file.read("sd.safetensors", **options)


def assert_inferred(checkpoint, configs):
    for network, config in configs.items():
        inferred = json.loads(checkpoint.files[f"{network}/config.json"])
        assert CONFIGS[network].from_dict(inferred) == CONFIGS[network].from_dict(config)  # with every default
    assert checkpoint.tensors.keys() == from_files(as_files(configs)).parameters().keys()


SCHEDULER = pipelines.SCHEDULER | {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}


def test_the_configs_of_sd1_are_told_from_the_shapes(monkeypatch, sd1):
    checkpoint = read_zeros(monkeypatch, sd1)
    assert_inferred(checkpoint, SD1)
    scheduler = json.loads(checkpoint.files["scheduler/scheduler_config.json"])
    assert scheduler.items() >= (SCHEDULER | {"prediction_type": "epsilon"}).items()
    assert json.loads(checkpoint.files["vae/config.json"])["scaling_factor"] == 0.18215
    index = json.loads(checkpoint.files["model_index.json"])
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["tokenizer"] == [None, None]
    assert not any(name.startswith("tokenizer") for name in checkpoint.files)


def test_the_configs_of_sd2_are_told_from_the_shapes(monkeypatch, sd2):
    # The released files have the layer that nothing uses, and what pools.
    block = "cond_stage_model.model.transformer.resblocks."
    unused = {key.replace(".22.", ".23."): shape for key, shape in sd2.items() if key.startswith(f"{block}22.")}
    assert len(unused) == 12
    pooling = {"cond_stage_model.model.text_projection": (1024, 1024), "cond_stage_model.model.logit_scale": ()}
    checkpoint = read_zeros(monkeypatch, sd2 | unused | pooling, prediction_type="v_prediction")
    assert_inferred(checkpoint, SD2)
    scheduler = json.loads(checkpoint.files["scheduler/scheduler_config.json"])
    assert scheduler.items() >= (SCHEDULER | {"prediction_type": "v_prediction"}).items()


def test_the_512_pixel_sd2_is_told_by_what_it_predicts(monkeypatch, sd2):
    unet = json.loads(read_zeros(monkeypatch, sd2, prediction_type="epsilon").files["unet/config.json"])
    assert unet["sample_size"] == 64
    assert "upcast_attention" not in unet


def test_an_inpainting_unet_is_told(monkeypatch, sd1):
    wider = sd1 | {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    assert_inferred(read_zeros(monkeypatch, wider), SD1 | {"unet": SD1["unet"] | {"in_channels": 9}})


def test_networks_that_are_not_in_the_file_are_left_out(monkeypatch, sd1):
    only = {key: shape for key, shape in sd1.items() if key.startswith("model.")}
    assert read_zeros(monkeypatch, only).networks == ["unet"]


def test_sd2_does_not_say_what_it_predicts(monkeypatch, sd2):
    with pytest.raises(UserError, match="--prediction-type epsilon.* or --prediction-type v_prediction"):
        read_zeros(monkeypatch, sd2)


@pytest.mark.parametrize(
    ("key", "shape", "why"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", (320, 5, 3, 3), "makes 4 channels of 5"),
        (
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            (1280, 1280),
            "looks at 1280 text features",
        ),
        ("first_stage_model.decoder.conv_in.weight", (512, 3, 3, 3), "4 levels and 3 latent channels"),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (49408, 512), "is 512 wide"),
    ],
)
def test_a_config_that_cannot_be_told_is_asked_for(monkeypatch, sd1, key, shape, why):
    assert key in sd1
    with pytest.raises(UserError, match=f"{why}.*--config"):
        read_zeros(monkeypatch, sd1 | {key: shape})
