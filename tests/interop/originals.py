"""Tiny and published architectures, and files of them in the original layout."""

import functools
import json

import numpy as np
import pytest

from jaxcxr.interop import config_files, pipeline, single_file
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.original_names import place
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor, open_safetensors, write_safetensors
from jaxcxr.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig

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


@pytest.fixture(scope="module")
def each_network_is_traced_once():
    """Tracing is most of the time here, and the same few networks are asked for again and again."""
    remembered = functools.cache(pipeline.abstract)
    classes = {config_files.network_class(network, {}): CONFIGS[network] for network in CONFIGS}
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


def load(file):
    return pytest.importorskip("safetensors.torch").load_file(file)


def utils():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers.loaders.single_file_utils")


def assert_same(theirs, ours):
    assert theirs.keys() == ours.keys()
    for key in ours:
        np.testing.assert_array_equal(theirs[key].numpy(), ours[key], err_msg=key)


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
