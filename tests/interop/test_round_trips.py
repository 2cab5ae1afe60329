"""Every layout there and back, on random architectures of the family, to the last bit and in the same dtype."""

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcxr import interop
from jaxcxr.interop import diffusers, orbax, single_file
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.config_files import SCHEDULER_CONFIG, model_index, network_config
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor
from tests import pipelines

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@st.composite
def unets(draw, latents, width):
    levels = draw(st.integers(2, 3))
    attends = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    heads = draw(st.sampled_from([1, 2]))
    return {
        "sample_size": 8,
        "in_channels": draw(st.sampled_from([latents, 2 * latents + 1])),
        "out_channels": latents,
        "block_out_channels": [4 * n for n in draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))],
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": 2,
        "cross_attention_dim": width,
        "attention_head_dim": draw(st.sampled_from([heads, [heads] * levels])),
        "use_linear_projection": draw(st.booleans()),
        "upcast_attention": draw(st.booleans()),
    }


@st.composite
def vaes(draw, latents):
    levels = draw(st.integers(1, 3))
    return {
        "in_channels": draw(st.sampled_from([1, 3])),
        "out_channels": 1,
        "latent_channels": latents,
        "block_out_channels": [4 * n for n in draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": 2,
    }


@st.composite
def text_encoders(draw, width):
    config = {
        "vocab_size": draw(st.integers(5, 30)),
        "hidden_size": width,
        "intermediate_size": 12,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": 2,
        "max_position_embeddings": draw(st.integers(5, 9)),
    }
    kind = draw(st.sampled_from(["quick_gelu", "gelu", "bert", "roberta"]))
    return config | ({"hidden_act": kind} if "gelu" in kind else {"model_type": kind})


@st.composite
def checkpoints(draw):
    """A whole pipeline: every tensor another, all of one dtype."""
    latents, width = draw(st.sampled_from([4, 8])), draw(st.sampled_from([8, 16]))
    configs = {
        "unet": draw(unets(latents, width)),
        "vae": draw(vaes(latents)),
        "text_encoder": draw(text_encoders(width)),
    }
    return whole(configs, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32)))


def whole(configs, dtype, seed) -> Checkpoint:
    """A pipeline of these networks with random weights."""
    files = {f"{name}/config.json": network_config(name, config) for name, config in configs.items()}
    files |= {SCHEDULER_CONFIG: json.dumps(pipelines.SCHEDULER).encode(), "tokenizer/vocab.json": b"{}\n"}
    files["model_index.json"] = model_index(files)
    generator = np.random.default_rng(seed)
    shapes = {name: value.shape for name, value in from_files(files).parameters().items()}
    tensors = {name: Tensor.of(generator.normal(size=shape).astype(dtype)) for name, shape in shapes.items()}
    return Checkpoint(files, tensors)


def assert_same(found: Checkpoint, expected: Checkpoint):
    assert found.files == expected.files
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        read, wanted = found.tensors[name].read(), tensor.read()
        assert (read.dtype, read.shape) == (wanted.dtype, wanted.shape), name
        assert read.tobytes() == np.ascontiguousarray(wanted).tobytes(), name


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(checkpoints(), st.sampled_from([None, 2000]))
def test_every_layout_there_and_back_is_exact(checkpoint, max_shard_size):
    bert = json.loads(checkpoint.files["text_encoder/config.json"]).get("model_type") in ("bert", "roberta")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        diffusers.write(checkpoint, folder / "diffusers", max_shard_size=max_shard_size)
        assert_same(interop.read(folder / "diffusers"), checkpoint)
        orbax.write(interop.read(folder / "diffusers"), folder / "orbax")
        assert_same(interop.read(folder / "orbax"), checkpoint)
        if not bert:
            single_file.write(interop.read(folder / "orbax"), folder / "single.safetensors")
            single = interop.read(folder / "single.safetensors", config=folder / "diffusers")
            assert_same(single, checkpoint)
            orbax.write(single, folder / "orbax again")
            assert_same(interop.read(folder / "orbax again"), checkpoint)


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
def test_one_network_by_itself_goes_through_every_layout(network, tmp_path):
    checkpoint = _small().only((network,))
    assert [name.split("/")[0] for name in checkpoint.files].count(network) == 1
    diffusers.write(checkpoint, tmp_path / "diffusers")
    orbax.write(interop.read(tmp_path / "diffusers"), tmp_path / "orbax")
    single_file.write(interop.read(tmp_path / "orbax"), tmp_path / "single.safetensors")
    single = interop.read(tmp_path / "single.safetensors", config=tmp_path / "diffusers")
    for name, tensor in checkpoint.tensors.items():
        assert single.tensors[name].read().tobytes() == np.ascontiguousarray(tensor.read()).tobytes()
    assert {folder.name for folder in (tmp_path / "diffusers").iterdir() if folder.is_dir()} == {
        network,
        "scheduler",
        "tokenizer",
    }


def test_one_network_of_orbax_is_read_without_the_others(tmp_path):
    checkpoint = _small()
    orbax.write(checkpoint, tmp_path / "orbax")
    read = orbax.read(tmp_path / "orbax", only=("vae",))
    assert read.networks == ["vae"]
    assert len(read.tensors) == len(checkpoint.under("vae"))


def _small() -> Checkpoint:
    text = pipelines.TEXT | {"vocab_size": 20}
    return whole({"unet": pipelines.UNET, "vae": pipelines.VAE, "text_encoder": text}, np.float16, seed=0)
