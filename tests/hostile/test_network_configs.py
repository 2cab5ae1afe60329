"""A damaged or hostile `config.json` of a network is read or refused in one line, and quickly."""

import json
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop.checkpoint import check
from jaxcxr.interop.config_files import CLASSIFIER, NETWORKS, network_config, network_config_of
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor
from tests import pipelines
from tests.hostile.mutations import json_variants, one_line_or_fine

HALF = settings(max_examples=settings.default.max_examples // 2)
WORDS = {"vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59}
BERT = {
    **{"model_type": "bert", "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 16, "type_vocab_size": 2, "pad_token_id": 0},
}
CONFIGS = {
    "unet": ("unet", json.loads(network_config("unet", pipelines.UNET | {"layers_per_block": [1, 1]}))),
    "vae": ("vae", json.loads(network_config("vae", pipelines.VAE))),
    "clip": ("text_encoder", json.loads(network_config("text_encoder", pipelines.TEXT | WORDS))),
    "bert": ("text_encoder", json.loads(network_config("text_encoder", BERT))),
    "roberta": ("text_encoder", json.loads(network_config("text_encoder", BERT | {"model_type": "roberta"}))),
    "classifier": (
        CLASSIFIER,
        json.loads(network_config(CLASSIFIER, {"architecture": "small", "classes": ["A", "B"], "image_size": 32})),
    ),
}


def names(kind):
    """Every parameter of a network, all zero."""
    network, config = CONFIGS[kind]
    files = {f"{network}/config.json": json.dumps(config).encode()}
    shapes = {name: value.shape for name, value in from_files(files).parameters().items()}
    return {name: Tensor.of(np.broadcast_to(np.float32(0), shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tensors():
    return {kind: names(kind) for kind in CONFIGS}


@pytest.mark.parametrize("kind", CONFIGS)
@given(data=json_variants(json.loads(json.dumps({kind: config for kind, (_, config) in CONFIGS.items()}))))
def test_mutated_configs_are_read_or_refused_in_one_line(kind, data):
    config = data.get(kind) if isinstance(data, dict) else data
    found = one_line_or_fine(network_config_of, CONFIGS[kind][0], json.dumps(config).encode())
    if not isinstance(found, UserError):
        assert (kind != "classifier") <= found.blocks <= 256


def mutated(kind):
    return json_variants(CONFIGS[kind][1])


def checked(kind, config, tensors):
    network = CONFIGS[kind][0]
    files = {f"{network}/config.json": json.dumps(config).encode()}
    return check(interop.Checkpoint(files, tensors[kind]), "here")


@HALF
@given(config=mutated("unet"))
def test_a_mutated_unet_is_checked_against_its_tensors(tensors, config):
    one_line_or_fine(checked, "unet", config, tensors)


@HALF
@given(config=mutated("vae"))
def test_a_mutated_autoencoder_is_checked_against_its_tensors(tensors, config):
    one_line_or_fine(checked, "vae", config, tensors)


@HALF
@given(config=mutated("clip"))
def test_a_mutated_clip_is_checked_against_its_tensors(tensors, config):
    one_line_or_fine(checked, "clip", config, tensors)


@HALF
@given(config=mutated("bert"))
def test_a_mutated_bert_is_checked_against_its_tensors(tensors, config):
    one_line_or_fine(checked, "bert", config, tensors)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("unet", "layers_per_block", 10**6),
        ("unet", "layers_per_block", 60),
        ("unet", "transformer_layers_per_block", 64),
        ("unet", "block_out_channels", [16] * 1000),
        ("vae", "layers_per_block", 10**6),
        ("vae", "layers_per_block", 60),
        ("clip", "num_hidden_layers", 10**6),
        ("clip", "num_hidden_layers", 64),
        ("bert", "num_hidden_layers", 63),
    ],
)
def test_a_network_that_its_tensors_do_not_make_is_refused_at_once(tensors, kind, key, value):
    started = time.perf_counter()
    with pytest.raises(UserError, match=rf"{key}|blocks"):
        checked(kind, CONFIGS[kind][1] | {key: value}, tensors)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_config_counts_the_blocks_that_there_are(kind, tensors):
    checked(kind, CONFIGS[kind][1], tensors)


@HALF
@given(
    index=json_variants(
        {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"], "unet": [None, None]}
    )
)
def test_a_mutated_model_index_is_read_or_refused_in_one_line(tmp_path_factory, tensors, index):
    folder = tmp_path_factory.mktemp("index")
    try:
        interop.diffusers.write(
            interop.Checkpoint({"vae/config.json": json.dumps(CONFIGS["vae"][1]).encode()}, tensors["vae"]),
            folder / "x",
        )
        (folder / "x" / "model_index.json").write_text(json.dumps(index))
        one_line_or_fine(lambda: interop.diffusers.write(interop.read(folder / "x"), folder / "out"))
    finally:
        shutil.rmtree(folder)


def test_every_network_is_attacked():
    assert {network for network, _ in CONFIGS.values()} == {*NETWORKS, CLASSIFIER}
