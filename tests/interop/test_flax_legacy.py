import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop import flax_legacy
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.pipeline import write_files
from jaxcxr.interop.tensors import Tensor, write_safetensors
from tests import pipelines

st = pytest.importorskip("safetensors.numpy")

TORCH_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
FLAX_CLASSES = {
    "scheduler": ["diffusers", "FlaxDDIMScheduler"],
    "text_encoder": ["transformers", "FlaxCLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "FlaxUNet2DConditionModel"],
    "vae": ["diffusers", "FlaxAutoencoderKL"],
}
CONV, DENSE, TABLE, VECTOR = (2, 3, 1, 0), (1, 0), (0, 1), (0,)
# One name of each kind, as the Flax classes build them: Flax path, PyTorch key, axes of the PyTorch tensor.
NAMES = {
    "unet": [
        ("conv_in/kernel", "conv_in.weight", CONV),
        ("conv_in/bias", "conv_in.bias", VECTOR),
        ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight", DENSE),
        ("down_blocks_0/resnets_0/norm1/scale", "down_blocks.0.resnets.0.norm1.weight", VECTOR),
        ("down_blocks_0/resnets_0/time_emb_proj/kernel", "down_blocks.0.resnets.0.time_emb_proj.weight", DENSE),
        ("down_blocks_1/resnets_0/conv_shortcut/kernel", "down_blocks.1.resnets.0.conv_shortcut.weight", CONV),
        ("down_blocks_0/downsamplers_0/conv/kernel", "down_blocks.0.downsamplers.0.conv.weight", CONV),
        ("up_blocks_0/upsamplers_0/conv/bias", "up_blocks.0.upsamplers.0.conv.bias", VECTOR),
        ("mid_block/attentions_0/proj_in/kernel", "mid_block.attentions.0.proj_in.weight", CONV),
        (
            "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            DENSE,
        ),
        (
            "up_blocks_1/attentions_1/transformer_blocks_0/attn2/to_out_0/bias",
            "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0.bias",
            VECTOR,
        ),
        (
            "mid_block/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
            DENSE,
        ),
        (
            "mid_block/attentions_0/transformer_blocks_0/ff/net_2/kernel",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight",
            DENSE,
        ),
        (
            "mid_block/attentions_0/transformer_blocks_0/norm3/scale",
            "mid_block.attentions.0.transformer_blocks.0.norm3.weight",
            VECTOR,
        ),
        ("conv_norm_out/scale", "conv_norm_out.weight", VECTOR),
    ],
    "vae": [
        ("encoder/down_blocks_0/downsamplers_0/conv/kernel", "encoder.down_blocks.0.downsamplers.0.conv.weight", CONV),
        ("encoder/mid_block/resnets_1/conv2/kernel", "encoder.mid_block.resnets.1.conv2.weight", CONV),
        ("encoder/mid_block/attentions_0/group_norm/scale", "encoder.mid_block.attentions.0.group_norm.weight", VECTOR),
        ("encoder/mid_block/attentions_0/query/kernel", "encoder.mid_block.attentions.0.to_q.weight", DENSE),
        ("decoder/mid_block/attentions_0/key/bias", "decoder.mid_block.attentions.0.to_k.bias", VECTOR),
        ("decoder/mid_block/attentions_0/value/kernel", "decoder.mid_block.attentions.0.to_v.weight", DENSE),
        ("decoder/mid_block/attentions_0/proj_attn/kernel", "decoder.mid_block.attentions.0.to_out.0.weight", DENSE),
        (
            "decoder/up_blocks_1/resnets_0/conv_shortcut/kernel",
            "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
            CONV,
        ),
        ("decoder/up_blocks_0/upsamplers_0/conv/kernel", "decoder.up_blocks.0.upsamplers.0.conv.weight", CONV),
        ("quant_conv/kernel", "quant_conv.weight", CONV),
        ("post_quant_conv/bias", "post_quant_conv.bias", VECTOR),
    ],
    "text_encoder": [
        ("text_model/embeddings/token_embedding/embedding", "text_model.embeddings.token_embedding.weight", TABLE),
        (
            "text_model/embeddings/position_embedding/embedding",
            "text_model.embeddings.position_embedding.weight",
            TABLE,
        ),
        (
            "text_model/encoder/layers/1/self_attn/q_proj/kernel",
            "text_model.encoder.layers.1.self_attn.q_proj.weight",
            DENSE,
        ),
        ("text_model/encoder/layers/0/layer_norm1/scale", "text_model.encoder.layers.0.layer_norm1.weight", VECTOR),
        ("text_model/encoder/layers/0/mlp/fc2/bias", "text_model.encoder.layers.0.mlp.fc2.bias", VECTOR),
        ("text_model/final_layer_norm/bias", "text_model.final_layer_norm.bias", VECTOR),
    ],
}
VAE_ATTENTION = {"to_q": ["query"], "to_k": ["key"], "to_v": ["value"], "to_out": ["proj_attn"]}


def to_flax(network, key, value):
    """The Flax path and array of a PyTorch tensor, by the shape of its module's name alone."""
    *parts, leaf = key.split(".")
    path = []
    for part in parts:
        if network == "vae" and "attentions_0" in path and part in VAE_ATTENTION:
            path += VAE_ATTENTION[part]
        elif part.isdigit() and path[-1] == "proj_attn":
            continue
        elif part.isdigit() and network != "text_encoder":
            path[-1] += f"_{part}"
        else:
            path.append(part)
    if leaf == "bias":
        return [*path, "bias"], value
    if value.ndim == 1:
        return [*path, "scale"], value
    if path[-1] in ("token_embedding", "position_embedding"):
        return [*path, "embedding"], value
    return [*path, "kernel"], value.transpose(*((2, 3, 1, 0) if value.ndim == 4 else (1, 0)))


def nest(leaves):
    tree = {}
    for path, value in leaves:
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
    return tree


def torch_tensors(folder, network):
    found = st.load_file(folder / network / TORCH_WEIGHTS[network])
    if network == "text_encoder":
        found = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in found.items()}
    return found


def edit_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def write_msgpack(file, tree):
    from flax.serialization import msgpack_serialize

    file.write_bytes(msgpack_serialize(tree))


def read_msgpack(file):
    from flax.serialization import msgpack_restore

    return msgpack_restore(file.read_bytes())


@pytest.fixture(scope="module")
def legacy(source, tmp_path_factory):
    """The pipeline as the Flax classes would have saved it."""
    folder = shutil.copytree(source, tmp_path_factory.mktemp("flax") / "pipeline")
    for network, weights in flax_legacy.WEIGHTS.items():
        leaves = [to_flax(network, key, value) for key, value in torch_tensors(source, network).items()]
        write_msgpack(folder / network / weights, nest(leaves))
        (folder / network / TORCH_WEIGHTS[network]).unlink()
    edit_json(folder / "model_index.json", _class_name="FlaxStableDiffusionPipeline", **FLAX_CLASSES)
    edit_json(
        folder / "unet/config.json",
        _class_name="FlaxUNet2DConditionModel",
        split_head_dim=False,
        use_memory_efficient_attention=False,
        flash_min_seq_length=4096,
        addition_embed_type_num_heads=64,
    )
    edit_json(folder / "vae/config.json", _class_name="FlaxAutoencoderKL")
    edit_json(folder / "text_encoder/config.json", architectures=["FlaxCLIPTextModel"])
    edit_json(folder / "scheduler/scheduler_config.json", _class_name="FlaxDDIMScheduler")
    return folder


@pytest.fixture
def broken(legacy, tmp_path):
    return shutil.copytree(legacy, tmp_path / "broken")


def as_torch(checkpoint, network):
    prefix = f"{network}."
    own = [name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix)]
    return dict(to_torch(name, checkpoint.tensors[prefix + name].read()) for name in own)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_a_folder_is_told_by_its_weights(source, legacy, tmp_path):
    assert flax_legacy.is_flax(legacy)
    assert not flax_legacy.is_flax(source)
    assert not flax_legacy.is_flax(tmp_path / "nothing")


def test_every_tensor_is_the_one_pytorch_had(source, legacy):
    checkpoint = flax_legacy.read(legacy)
    assert checkpoint.networks == ["unet", "vae", "text_encoder"]
    for network in TORCH_WEIGHTS:
        assert_equal(as_torch(checkpoint, network), torch_tensors(source, network))


@pytest.mark.parametrize("network", NAMES)
def test_a_name_of_each_kind(source, legacy, network):
    theirs, tree = (
        as_torch(flax_legacy.read(legacy), network),
        read_msgpack(legacy / network / flax_legacy.WEIGHTS[network]),
    )
    for path, key, axes in NAMES[network]:
        leaf = tree
        for part in path.split("/"):
            leaf = leaf[part]
        np.testing.assert_array_equal(leaf, torch_tensors(source, network)[key].transpose(axes), err_msg=path)
        np.testing.assert_array_equal(leaf, theirs[key].transpose(axes), err_msg=path)


def test_names_are_ours(legacy):
    tensors = flax_legacy.read(legacy).tensors
    assert tensors["unet.conv_in.kernel"].shape == (3, 3, 4, 32)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.kernel" in tensors
    assert "vae.encoder.mid_block.attentions.0.to_out.0.kernel" in tensors
    assert "text_encoder.text_model.encoder.layers.0.mlp.fc1.kernel" in tensors


def test_linear_projections_and_deeper_transformers_are_read(tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        **pipelines.UNET | {"use_linear_projection": True, "transformer_layers_per_block": 2, "layers_per_block": 2}
    )
    model.save_pretrained(tmp_path / "unet")
    tensors = torch_tensors(tmp_path, "unet")
    leaves = [to_flax("unet", key, value) for key, value in tensors.items()]
    write_msgpack(tmp_path / "unet" / flax_legacy.WEIGHTS["unet"], nest(leaves))
    checkpoint = flax_legacy.read(tmp_path)
    assert checkpoint.tensors["unet.mid_block.attentions.0.proj_in.kernel"].shape == (64, 64)
    assert_equal(as_torch(checkpoint, "unet"), tensors)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays(broken, dtype):
    file = broken / "vae" / flax_legacy.WEIGHTS["vae"]
    tree = read_msgpack(file)
    tree["quant_conv"]["kernel"] = tree["quant_conv"]["kernel"].astype(dtype)
    write_msgpack(file, tree)
    tensor = flax_legacy.read(broken).tensors["vae.quant_conv.kernel"]
    assert tensor.dtype == tensor.read().dtype == dtype
    np.testing.assert_array_equal(tensor.read(), tree["quant_conv"]["kernel"])


def test_files_name_pytorchs_classes(source, legacy):
    files = flax_legacy.read(legacy).files
    index = json.loads(files["model_index.json"])
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["safety_checker"] == [None, None]
    for name in ("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        ours, theirs = json.loads(files[name]), json.loads((source / name).read_bytes())
        ours.pop("addition_embed_type_num_heads", None), theirs.pop("addition_embed_type_num_heads", None)
        assert ours == theirs
    assert json.loads(files["text_encoder/config.json"])["architectures"] == ["CLIPTextModel"]
    assert not any(b"Flax" in content or b"split_head_dim" in content for content in files.values())
    tokenizer = {file.name: file.read_bytes() for file in (source / "tokenizer").iterdir()}
    assert {name.split("/")[1]: data for name, data in files.items() if name.startswith("tokenizer/")} == tokenizer


def test_maxdiffusions_index_names_diffusers(broken):
    classes = {"unet": ["maxdiffusion", "FlaxUNet2DConditionModel"], "vae": ["maxdiffusion", "FlaxAutoencoderKL"]}
    edit_json(broken / "model_index.json", _name_or_path="FlaxOfMine", **classes)
    index = json.loads(flax_legacy.read(broken).files["model_index.json"])
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["_name_or_path"] == "FlaxOfMine"


def test_what_was_read_loads_in_pytorch(source, legacy, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    checkpoint = flax_legacy.read(legacy)
    write_files(tmp_path, checkpoint.files)
    for network, weights in TORCH_WEIGHTS.items():
        tensors = {key: Tensor.of(value) for key, value in as_torch(checkpoint, network).items()}
        write_safetensors(tmp_path / network / weights, tensors)
    ours = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(source)
    assert type(ours.scheduler) is diffusers.DDIMScheduler
    for network in TORCH_WEIGHTS:
        expected = getattr(theirs, network).state_dict()
        found = getattr(ours, network).state_dict()
        assert found.keys() == expected.keys()
        assert all((found[key] == expected[key]).all() for key in expected)


# Broken folders.


def edit(folder, network, change):
    file = folder / network / flax_legacy.WEIGHTS[network]
    tree = read_msgpack(file)
    change(tree)
    write_msgpack(file, tree)


def complaint(folder):
    with pytest.raises(UserError) as caught:
        flax_legacy.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_parameter_is_named(broken):
    edit(broken, "unet", lambda tree: tree["mid_block"]["resnets_0"]["conv1"].pop("kernel"))
    assert "unet.mid_block.resnets.0.conv1.kernel is missing" in complaint(broken)


def test_a_left_over_parameter_is_named(broken):
    edit(broken, "vae", lambda tree: tree["encoder"].update({"extra\n0": {"kernel": np.zeros((2, 2), np.float32)}}))
    assert "vae.encoder.extra 0.kernel is not one the config describes" in complaint(broken)


def test_a_name_of_ours_is_no_name_of_theirs(broken):
    def rename(tree):
        attention = tree["encoder"]["mid_block"]["attentions_0"]
        attention["to_q"] = attention.pop("query")

    edit(broken, "vae", rename)
    assert "vae.encoder.mid_block.attentions.0.to_q" in complaint(broken)


def test_a_misshapen_parameter_is_named(broken):
    edit(broken, "text_encoder", lambda tree: tree["text_model"]["final_layer_norm"].update(bias=np.zeros(31)))
    assert "text_encoder.text_model.final_layer_norm.bias has shape (31,), the config asks for (32,)" in complaint(
        broken
    )


@pytest.mark.parametrize("leaf", [None, 3, "x", [1, 2], {}, np.float32(1)])
def test_what_is_no_array_is_named(broken, leaf):
    edit(broken, "unet", lambda tree: tree["conv_in"].update(kernel=leaf))
    message = complaint(broken)
    assert "unet/diffusion_flax_model.msgpack: conv_in.kernel is no array" in message


def test_a_buffer_of_positions_is_left_aside(broken):
    positions = np.arange(77)[None]
    edit(broken, "text_encoder", lambda tree: tree["text_model"]["embeddings"].update(position_ids=positions))
    flax_legacy.read(broken)


def test_a_missing_file_is_named(broken):
    (broken / "vae" / flax_legacy.WEIGHTS["vae"]).unlink()
    assert "vae/diffusion_flax_model.msgpack: no such file" in complaint(broken)


def test_a_folder_without_networks_is_told(tmp_path):
    assert "no network here" in complaint(tmp_path)


def test_a_damaged_file_is_named(broken):
    shutil.rmtree(broken / "vae")
    shutil.rmtree(broken / "text_encoder")
    file = broken / "unet" / flax_legacy.WEIGHTS["unet"]
    content = file.read_bytes()
    for damaged in (
        b"",
        b"hello",
        content[: len(content) // 2],
        content[:-1],
        content + b"\0",
        b"\xc1" * 100,
        b"\x91" * 5000 + b"\x90",
        b"\x81\xa1a" * 5000 + b"\x80",
        content.replace(b"float32", b"object ", 1),
        content.replace(b"float32", b"float64", 1),
        content.replace(b"float32", b"fl\nat32", 1),
    ):
        file.write_bytes(damaged)
        assert "unet/diffusion_flax_model.msgpack" in complaint(broken)
