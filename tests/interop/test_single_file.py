import functools
import json

import ml_dtypes
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop import pipeline, single_file
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.original_names import PREFIXES, ema_key, place
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor, open_safetensors, write_safetensors
from jaxcxr.models.config import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig

WIDE = {"sample_size": 8, "norm_num_groups": 8, "cross_attention_dim": 16, "attention_head_dim": 2}
UNETS = {
    "one layer, attention outside": WIDE
    | {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "two layers, attention inside, linear projection": WIDE
    | {
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 2,
        "use_linear_projection": True,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "four levels, nine channels in": WIDE
    | {"in_channels": 9, "block_out_channels": [16, 16, 32, 32], "transformer_layers_per_block": 2},
    "classes": WIDE
    | {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "num_class_embeds": 5,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
}
VAES = {
    "one layer": {"block_out_channels": [8, 16], "norm_num_groups": 4, "in_channels": 1, "out_channels": 1},
    "two layers, four levels": {
        "block_out_channels": [8, 8, 16, 16],
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "latent_channels": 8,
    },
}
for vae in VAES.values():
    vae["down_block_types"] = ["DownEncoderBlock2D"] * len(vae["block_out_channels"])
    vae["up_block_types"] = ["UpDecoderBlock2D"] * len(vae["block_out_channels"])
TEXT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
}
TEXTS = {act: TEXT | {"hidden_act": act} for act in ("quick_gelu", "gelu")}
TINY = {
    "unet": UNETS["one layer, attention outside"],
    "vae": VAES["one layer"],
    "text_encoder": TEXTS["quick_gelu"],
}

# What the hub's configs of the released models say.
SD1 = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
}
SD2 = {
    "unet": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "vae": SD1["vae"] | {"sample_size": 768},
    "text_encoder": SD1["text_encoder"]
    | {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
}


CONFIGS = {"unet": UNet2DConditionConfig, "vae": AutoencoderKLConfig, "text_encoder": CLIPTextConfig}


@pytest.fixture(scope="module", autouse=True)
def each_network_is_traced_once():
    """Tracing is most of the time here, and the same few networks are asked for again and again."""
    remembered = functools.cache(pipeline.abstract)
    classes = {pipeline.NETWORKS[network]: CONFIGS[network] for network in CONFIGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "abstract", lambda cls, config, dtype: remembered(cls, classes[cls].from_dict(config)))
        yield


def as_files(configs):
    return {f"{network}/config.json": json.dumps(config).encode() for network, config in configs.items()}


def checkpoint_of(configs, dtype=np.float32):
    """A checkpoint of random weights, none like another."""
    generator = np.random.default_rng(0)
    files = as_files(configs)
    shapes = {name: value.shape for name, value in from_files(files).parameters().items()}
    return Checkpoint(files, {n: Tensor.of(generator.normal(size=s).astype(dtype)) for n, s in shapes.items()})


def torch_names(checkpoint, network):
    """The network's tensors as diffusers has them."""
    return dict(
        to_torch(name.removeprefix(f"{network}."), tensor.read())
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(f"{network}.")
    )


def written(configs, folder, **options):
    checkpoint = checkpoint_of(configs, **options)
    single_file.write(checkpoint, folder / "model.safetensors")
    return checkpoint, folder / "model.safetensors"


def folder_of(files, folder):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def edit(file, change):
    found = {name: Tensor.of(np.array(tensor.read())) for name, tensor in open_safetensors(file).items()}
    change(found)
    write_safetensors(file, found)


def zeros(shapes):
    """Tensors of these shapes that take no memory."""
    return {
        key: Tensor(tuple(shape), np.dtype(np.float16), lambda s=tuple(shape): np.broadcast_to(np.float16(0), s))
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny file and the folder of its configs."""
    folder = tmp_path_factory.mktemp("source")
    checkpoint, file = written(TINY, folder)
    return checkpoint, file, folder_of(checkpoint.files, folder / "config")


@pytest.fixture
def broken(source, tmp_path):
    """A copy of the tiny file to spoil."""
    file = tmp_path / "broken.safetensors"
    file.write_bytes(source[1].read_bytes())
    return file, source[2]


def load(file):
    return pytest.importorskip("safetensors.torch").load_file(file)


def utils():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers.loaders.single_file_utils")


def assert_same(theirs, ours):
    assert theirs.keys() == ours.keys()
    for key in ours:
        np.testing.assert_array_equal(theirs[key].numpy(), ours[key], err_msg=key)


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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_there_and_back_is_exact(text, dtype, tmp_path):
    checkpoint, file = written(TINY | {"text_encoder": text}, tmp_path, dtype=dtype)
    back = single_file.read(file, config=folder_of(checkpoint.files, tmp_path / "config"))
    assert back.files == checkpoint.files
    assert back.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in back.tensors.items():
        before, after = checkpoint.tensors[name].read(), tensor.read()
        assert (tensor.shape, tensor.dtype) == (before.shape, before.dtype) == (after.shape, after.dtype)
        assert before.tobytes() == np.ascontiguousarray(after).tobytes(), name


def test_writing_can_round(source, tmp_path):
    checkpoint, file, _ = source
    single_file.write(checkpoint, tmp_path / "half.safetensors", dtype=np.float16)
    theirs, ours = open_safetensors(file), open_safetensors(tmp_path / "half.safetensors")
    assert all((theirs[key].read().astype(np.float16) == ours[key].read()).all() for key in theirs | ours)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """Nothing is read before the writer asks, and only the three thirds of one tensor at once."""
    read = []

    def watch(name, tensor):
        return Tensor(tensor.shape, tensor.dtype, lambda: read.append(name) or tensor.read())

    checkpoint = checkpoint_of({"text_encoder": TEXTS["gelu"]})
    watched = Checkpoint(checkpoint.files, {name: watch(name, tensor) for name, tensor in checkpoint.tensors.items()})
    originals = single_file._originals(watched)
    assert not read
    originals["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"].read()
    layer = "text_encoder.text_model.encoder.layers.1.self_attn"
    assert read == [f"{layer}.{part}_proj.kernel" for part in "qkv"]


def original_shapes(configs):
    """Names and shapes of the whole file of networks of these configs."""
    shapes = {}
    for full_name, value in from_files(as_files(configs)).parameters().items():
        network, _, name = full_name.partition(".")
        torch_name, stand_in = to_torch(name, np.broadcast_to(np.float32(0), value.shape))
        where = place(network, torch_name, configs[network])
        shape = stand_in.shape
        if where.third is not None:
            shape = (3 * shape[0], *shape[1:])
        shapes[where.key] = (*shape, 1, 1) if where.pointwise else shape
    return shapes


@pytest.fixture(scope="module")
def sd1():
    return original_shapes(SD1)


@pytest.fixture(scope="module")
def sd2():
    return original_shapes(SD2)


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


SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


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


def test_a_prediction_type_that_is_none_is_refused(source):
    with pytest.raises(UserError, match="--prediction-type velocity: unknown"):
        single_file.read(source[1], prediction_type="velocity")


def test_a_prediction_type_overrides_the_config(source):
    _, file, folder = source
    files = single_file.read(file, config=folder, prediction_type="v_prediction").files
    assert json.loads(files["scheduler/scheduler_config.json"])["prediction_type"] == "v_prediction"


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


def test_a_tiny_file_without_config_is_refused(source):
    with pytest.raises(UserError, match="looks at 16 text features.*--config"):
        single_file.read(source[1])


FAMILIES = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": "Stable Diffusion XL",
    "model.diffusion_model.label_emb.0.0.weight": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.0.img_attn.proj.weight": "Flux",
    "double_blocks.0.img_attn.proj.weight": "Flux",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "noise_augmentor.data_mean": "Stable unCLIP",
    "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight": "Stable Video Diffusion",
}


@pytest.mark.parametrize(("key", "family"), FAMILIES.items())
def test_another_family_is_named(broken, key, family):
    file, config = broken
    edit(file, lambda found: found.update({key: Tensor.of(np.zeros(2, np.float32))}))
    with pytest.raises(UserError, match=f"is a {family} file"):
        single_file.read(file, config=config)


def test_a_file_of_something_else_is_told(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"conv_in.weight": Tensor.of(np.zeros(2, np.float32))})
    with pytest.raises(UserError, match="has no tensor named model.diffusion_model"):
        single_file.read(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no such file"):
        single_file.read(tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="is neither .safetensors nor"):
        single_file.read(tmp_path / "y.bin")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.up.0.block.1.norm2.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.2.self_attn.k_proj.bias",
    ],
)
def test_a_missing_tensor_is_named(broken, key):
    file, config = broken
    edit(file, lambda found: found.pop(key))
    with pytest.raises(UserError, match=f"tensor {key} is missing"):
        single_file.read(file, config=config)


@pytest.mark.parametrize("prefix", PREFIXES.values())
def test_a_tensor_too_many_is_named(broken, prefix):
    file, config = broken
    edit(file, lambda found: found.update({f"{prefix}extra.weight": Tensor.of(np.zeros(2, np.float32))}))
    with pytest.raises(UserError, match=f"tensor {prefix}extra.weight is not one the config describes"):
        single_file.read(file, config=config)


def test_a_misshapen_tensor_is_named(broken):
    file, config = broken
    key = "model.diffusion_model.out.2.bias"
    edit(file, lambda found: found.update({key: Tensor.of(np.zeros(3, np.float32))}))
    with pytest.raises(UserError, match=rf"tensor {key} has shape \(3,\).*the config asks for \(4,\)"):
        single_file.read(file, config=config)


def test_what_training_left_is_ignored(broken, source):
    file, config = broken
    left = [
        *("betas", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_variance", "log_one_minus_alphas_cumprod"),
        *("lvlb_weights", "logvar", "model_ema.decay", "model_ema.num_updates", "scale_factor", "global_step"),
        *("loss.logvar", "first_stage_model.loss.logvar"),
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    ]
    edit(file, lambda found: found.update({key: Tensor.of(np.zeros(2, np.float32)) for key in left}))
    assert single_file.read(file, config=config).tensors.keys() == source[0].tensors.keys()


def test_text_names_without_their_inner_model_are_read(broken, source):
    file, config = broken

    def shorten(found):
        for key in [key for key in found if ".text_model." in key]:
            found[key.replace(".text_model.", ".")] = found.pop(key)

    edit(file, shorten)
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1.kernel"
    found = single_file.read(file, config=config).tensors[name].read()
    np.testing.assert_array_equal(found, source[0].tensors[name].read())


@pytest.fixture
def averaged(broken):
    file, config = broken

    def add(found):
        for key in [key for key in found if key.startswith("model.diffusion_model.")]:
            found[ema_key(key)] = Tensor.of(found[key].read() + 1)

    edit(file, add)
    return file, config


def test_the_average_has_the_name_without_dots():
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert ema_key(key) == "model_ema.diffusion_modelinput_blocks00weight"


@pytest.mark.parametrize("ema", [True, False])
def test_the_unets_average_is_taken_if_asked_for(averaged, source, ema):
    file, config = averaged
    found = single_file.read(file, config=config, ema=ema).tensors
    for name, tensor in source[0].tensors.items():
        added = np.float32(ema and name.startswith("unet."))
        np.testing.assert_array_equal(found[name].read(), tensor.read() + added, err_msg=name)


def test_the_average_is_the_one_that_diffusers_takes(averaged):
    utils_ = utils()
    file, config = averaged
    theirs = utils_.convert_ldm_unet_checkpoint(load(file), TINY["unet"], extract_ema=True)
    assert_same(theirs, torch_names(single_file.read(file, config=config), "unet"))


def test_an_average_that_lacks_a_tensor_is_told(averaged):
    file, config = averaged
    edit(file, lambda found: found.pop("model_ema.diffusion_modelout2bias"))
    with pytest.raises(UserError, match="tensor model_ema.diffusion_modelout2bias is missing"):
        single_file.read(file, config=config)
    assert single_file.read(file, config=config, ema=False)


def test_a_ckpt_is_read(source, tmp_path):
    torch = pytest.importorskip("torch")
    checkpoint, file, config = source
    torch.save({"state_dict": load(file), "global_step": 7}, tmp_path / "sd.ckpt")
    found = single_file.read(tmp_path / "sd.ckpt", config=config).tensors
    assert found.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read(), err_msg=name)


def test_a_file_that_exists_is_left_alone(source, tmp_path):
    (tmp_path / "mine.safetensors").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        single_file.write(source[0], tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "precious"
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        single_file.write(source[0], tmp_path / "model.ckpt")


def test_a_file_appears_whole_or_not_at_all(source, tmp_path):
    def fail():
        raise RuntimeError("the disk is on fire")

    name = "unet.conv_in.bias"
    tensor = source[0].tensors[name]
    failing = source[0].tensors | {name: Tensor(tensor.shape, tensor.dtype, fail)}
    with pytest.raises(RuntimeError, match="on fire"):
        single_file.write(Checkpoint(source[0].files, failing), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_bert_has_no_place(source, tmp_path):
    files = source[0].files | as_files({"text_encoder": {"model_type": "bert", "hidden_act": "gelu"}})
    with pytest.raises(UserError, match="model_type 'bert' has no place"):
        single_file.write(Checkpoint(files, source[0].tensors), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model_type 'bert' has no place"):
        single_file.read(source[1], config=folder_of(files, tmp_path / "config"))


@pytest.mark.parametrize(
    "difference",
    [
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"mid_block_type": "UNetMidBlock2D"},
        {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"},
    ],
)
def test_a_unet_that_is_none_of_ldms_has_no_place(tmp_path, difference):
    with pytest.raises(UserError, match=r"^unet\..* has no place for it"):
        written({"unet": TINY["unet"] | difference}, tmp_path)


def test_configs_and_tensors_of_different_networks_are_not_written(source, tmp_path):
    checkpoint = source[0]
    fewer = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "vae.quant_conv.bias"}
    with pytest.raises(UserError, match=r"vae\.quant_conv\.bias is missing"):
        single_file.write(Checkpoint(checkpoint.files, fewer), tmp_path / "model.safetensors")
    files = {name: data for name, data in checkpoint.files.items() if name != "vae/config.json"}
    with pytest.raises(UserError, match=r"vae/config\.json: is missing"):
        single_file.write(Checkpoint(files, checkpoint.tensors), tmp_path / "model.safetensors")
