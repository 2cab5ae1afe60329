"""Single files whose tensors have other shapes than any published architecture: their configs are told or refused."""

from pathlib import Path

import numpy as np
from hypothesis import given

from jaxcxr.interop import single_file
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor
from tests.hostile.mutations import json_variants, one_line_or_fine

UNET, VAE, TEXT = single_file._UNET, single_file._VAE, single_file._CLIP
SHAPES = {
    f"{UNET}input_blocks.0.0.weight": [32, 4, 3, 3],
    f"{UNET}input_blocks.1.0.out_layers.3.weight": [32, 32, 3, 3],
    f"{UNET}input_blocks.1.1.proj_in.weight": [32, 32, 1, 1],
    f"{UNET}input_blocks.3.0.op.weight": [32, 32, 3, 3],
    f"{UNET}input_blocks.4.0.out_layers.3.weight": [64, 32, 3, 3],
    f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": [64, 768],
    f"{UNET}middle_block.1.proj_in.weight": [64, 64, 1, 1],
    f"{UNET}out.2.weight": [4, 32, 3, 3],
    f"{VAE}encoder.conv_in.weight": [32, 3, 3, 3],
    f"{VAE}decoder.conv_in.weight": [32, 4, 3, 3],
    f"{VAE}decoder.conv_out.weight": [3, 32, 3, 3],
    **{f"{VAE}encoder.down.{level}.block.0.conv2.weight": [32, 32, 3, 3] for level in range(4)},
    f"{TEXT}embeddings.token_embedding.weight": [100, 768],
    f"{TEXT}embeddings.position_embedding.weight": [77, 768],
    f"{TEXT}encoder.layers.0.mlp.fc1.weight": [128, 768],
}


def told(shapes):
    found = {
        key: Tensor(tuple(shape), np.dtype(np.float32), lambda: np.zeros(1, np.float32))
        for key, shape in shapes.items()
        if isinstance(shape, list) and all(isinstance(n, int) and 0 <= n < 2**31 for n in shape)
    }
    return from_files(single_file._infer(found, Path("model.safetensors"), None))


def test_these_shapes_are_told():
    assert told(SHAPES).networks.keys() == {"unet", "vae", "text_encoder"}


@given(json_variants(SHAPES))
def test_other_shapes_are_told_or_refused_in_one_line(shapes):
    if isinstance(shapes, dict):
        one_line_or_fine(told, shapes)
