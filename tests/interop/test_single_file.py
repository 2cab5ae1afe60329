"""Files of the original layout there and back, and what is wrong with them."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop import single_file
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.original_names import PREFIXES, ema_key
from jaxcxr.interop.tensors import Tensor, open_safetensors, write_safetensors
from tests.interop.originals import (  # noqa: F401
    TEXTS,
    TINY,
    as_files,
    assert_same,
    checkpoint_of,
    each_network_is_traced_once,
    edit,
    folder_of,
    load,
    torch_names,
    utils,
    written,
    zeros,
)

pytestmark = pytest.mark.usefixtures("each_network_is_traced_once")


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


def test_a_prediction_type_that_is_none_is_refused(source):
    with pytest.raises(UserError, match="--prediction-type velocity: unknown"):
        single_file.read(source[1], prediction_type="velocity")


def test_a_prediction_type_overrides_the_config(source):
    _, file, folder = source
    files = single_file.read(file, config=folder, prediction_type="v_prediction").files
    assert json.loads(files["scheduler/scheduler_config.json"])["prediction_type"] == "v_prediction"


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
        single_file.read(tmp_path / "y.onnx")


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
