"""What the tests of transformers' vision networks share."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.models.named import with_parameters


def randomised(model, seed=0):
    """Draws every parameter of a network of PyTorch so that all of them and all inputs matter to its output."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name or "layrnorm" in name or "lambda1" in name:
            drawn = torch.rand(parameter.shape, generator=generator) + (0.5 if name.endswith(("weight", "1")) else -0.5)
        elif parameter.ndim > 1 and not any(part in name for part in ("token", "position", "embeddings.mask")):
            drawn = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
        else:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = drawn
    return model.eval()


def pixels(size, batch=2):
    """Inputs of a network, (batch, size, size, 3) float32."""
    return np.random.default_rng(5).normal(0, 1, (batch, size, size, 3)).astype(np.float32)


def to_torch(images):
    """The same as PyTorch has them."""
    import torch

    return torch.tensor(images).permute(0, 3, 1, 2)


def run(extractor, weights, images):
    """The extractor's features of what a network takes, (B, width)."""
    model = abstract_network(extractor)
    return np.asarray(jax.jit(lambda weights, images: with_parameters(model, weights)(images))(weights, images))


def near(ours, theirs, tolerance=1e-5):
    """Sees that features are equal, and that they would not be whatever the images are."""
    assert ours.shape == theirs.shape
    assert len(theirs) == 1 or theirs.std(axis=0).max() > 0.01 * abs(theirs).max()
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


def radiographs(most=3):
    """Real radiographs, unlike in size and shape; skips the test where there are none."""
    folder = Path(os.environ.get("JAXCXR_REAL_CXR") or Path(__file__).parents[4] / "shared" / "data" / "real_cxr")
    files = sorted((folder / "images").glob("*.jpg"))
    if not files:
        pytest.skip(f"no images in {folder}: real radiographs are not part of this project")
    return [Image.open(file).convert("L" if index % 2 else "RGB") for index, file in enumerate(files[:most])]


def noise(width, height, mode="RGB"):
    """A picture of random bytes."""
    drawn = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(drawn).convert(mode)
