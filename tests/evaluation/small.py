"""A small extractor and sets of images to try an evaluation on."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from jaxcxr.evaluation.extractors.extractor import Extractor, named_parameters

WIDTH = 6


class Small(nnx.Module):
    """Means over the two halves of what three kernels make of an image."""

    def __init__(self, rngs: nnx.Rngs):
        values = np.random.default_rng(0).standard_normal((3, 3, 1, 3)).astype(np.float32)
        self.kernel = nnx.Param(jnp.asarray(values))

    def __call__(self, images: jax.Array) -> jax.Array:
        found = jax.lax.conv_general_dilated(
            images, self.kernel[...], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        left, right = jnp.split(jnp.abs(found), 2, axis=2)
        return jnp.concatenate([left.mean((1, 2)), right.mean((1, 2))], axis=-1)


def prepared(image: Image.Image) -> np.ndarray:
    """Gray, 16 pixels a side, from 0 to 1."""
    return np.asarray(image.convert("L").resize((16, 16)), np.float32)[..., None] / 255


def weights(file: Path | None = None) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in named_parameters(Small(nnx.Rngs(0))).items()}


EXTRACTOR = Extractor(WIDTH, Small, {"plain": prepared}, "draw it", weights, bundled=lambda: Path("anywhere"))


def write_images(folder: Path, count: int, seed: int, side: int = 20, blur: float = 0.0) -> Path:
    """Images of noise, each a PNG of its own."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for number in range(count):
        pixels = draw.uniform(0, 255, (side, side)) * (1 - blur) + 128 * blur
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
    return folder
