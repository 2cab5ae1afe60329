"""Damaged or hostile safetensors files and their indices are read or refused in one line."""

import json

import numpy as np
import pytest
from hypothesis import given

from jaxcxr.interop.tensors import Tensor, open_safetensors, open_sharded, write_safetensors
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

ARRAYS = {
    "conv_in.weight": np.arange(12, dtype=np.float32).reshape(2, 2, 3, 1),
    "conv_in.bias": np.zeros(2, np.float16),
    "position_ids": np.arange(3),
}


def file_bytes(folder, **options):
    file = folder / "model.safetensors"
    write_safetensors(file, {name: Tensor.of(array) for name, array in ARRAYS.items()}, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards with their index."""
    path = tmp_path_factory.mktemp("shards")
    file_bytes(path, max_shard_size=50)
    return path


def read_all(tensors):
    for tensor in tensors.values():
        array = tensor.read()
        assert array.shape == tensor.shape
        assert array.dtype == tensor.dtype
        array.sum()


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
}


def packed(header) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(28)


@given(header=json_variants(HEADER))
def test_mutated_headers_are_read_or_refused_in_one_line(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(packed(header))
    one_line_or_fine(lambda: read_all(open_safetensors(tmp_path / "x.safetensors")))


@given(data=byte_variants(packed(HEADER)))
def test_mutated_bytes_are_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    one_line_or_fine(lambda: read_all(open_safetensors(tmp_path / "x.safetensors")))


INDEX = {
    "metadata": {"total_size": 76},
    "weight_map": {
        "conv_in.weight": "model-00001-of-00002.safetensors",
        "conv_in.bias": "model-00002-of-00002.safetensors",
    },
}


@given(index=json_variants(INDEX))
def test_mutated_indices_are_read_or_refused_in_one_line(folder, index):
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    one_line_or_fine(lambda: read_all(open_sharded(file, open_safetensors)))


@given(data=byte_variants(json.dumps(INDEX).encode()))
def test_mutated_bytes_of_an_index_are_read_or_refused_in_one_line(folder, data):
    file = folder / "model.safetensors.index.json"
    file.write_bytes(data)
    one_line_or_fine(lambda: read_all(open_sharded(file, open_safetensors)))
