"""Phantoms as films of real size and weight."""

import numpy as np
from PIL import Image

from jaxcxr.phantoms.generator import Drawing, bounding_box

FILM_NOISE = 2.0
"""Gray levels; with it a JPEG of quality 95 has the bytes per pixel of MIMIC-CXR-JPG's."""


def enlarge(drawing: Drawing, film: tuple[int, int], rng: np.random.Generator) -> Drawing:
    """Stretches a drawing to a film of (width, height) pixels, with the noise that a detector of that many has."""
    image = np.asarray(Image.fromarray(drawing.image).resize(film, Image.Resampling.BICUBIC), np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = (np.clip(image + FILM_NOISE * noise, 0, 255) + 0.5).astype(np.uint8)
    masks = tuple(np.asarray(Image.fromarray(mask).resize(film, Image.Resampling.NEAREST)) for mask in drawing.masks)
    lungs = np.asarray(Image.fromarray(drawing.lungs).resize(film, Image.Resampling.NEAREST))
    return Drawing(image, masks, lungs, tuple(bounding_box(mask) for mask in masks))
