import numpy as np
import pytest

from jaxcxr.interop.layout import from_torch, to_torch

CASES = [
    ("block.0.conv.kernel", (3, 5, 2, 7), "block.0.conv.weight", (7, 2, 3, 5)),
    ("attn.to_q.kernel", (2, 7), "attn.to_q.weight", (7, 2)),
    ("norm.scale", (4,), "norm.weight", (4,)),
    ("norm.bias", (4,), "norm.bias", (4,)),
    ("embeddings.token_embedding.embedding", (9, 4), "embeddings.token_embedding.weight", (9, 4)),
    ("embeddings.word_embeddings.embedding", (9, 4), "embeddings.word_embeddings.weight", (9, 4)),
    ("time_embedding.linear_1.kernel", (2, 7), "time_embedding.linear_1.weight", (7, 2)),
]


@pytest.mark.parametrize(("flax_name", "flax_shape", "torch_name", "torch_shape"), CASES)
def test_there_and_back(flax_name, flax_shape, torch_name, torch_shape):
    array = np.arange(np.prod(flax_shape), dtype=np.float32).reshape(flax_shape)
    name, moved = to_torch(flax_name, array)
    assert (name, moved.shape) == (torch_name, torch_shape)
    assert np.shares_memory(moved, array)
    name, back = from_torch(name, moved)
    assert name == flax_name
    assert np.array_equal(back, array)


def test_a_convolution_keeps_its_taps():
    kernel = np.random.default_rng(0).standard_normal((3, 5, 2, 7))
    _, weight = to_torch("conv.kernel", kernel)
    assert weight[6, 1, 2, 4] == kernel[2, 4, 1, 6]


@pytest.mark.parametrize(("convert", "leaf"), [(to_torch, "weight"), (from_torch, "kernel")])
def test_what_is_no_parameter_is_refused(convert, leaf):
    with pytest.raises(ValueError, match=f"conv.{leaf}"):
        convert(f"conv.{leaf}", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="3 axes"):
        convert("conv.bias", np.zeros((2, 2, 2)))
