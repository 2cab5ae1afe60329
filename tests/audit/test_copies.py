"""Copies that a model has made of images are known by their pixels."""

import numpy as np

from jaxcxr.audit import copies
from jaxcxr.evaluation.sets import ImageSet, Item


def test_copies_of_another_model_are_other_images():
    images = ImageSet("train", "folder", [Item(lambda side: np.zeros((4, 4), np.uint8), "file/1/2", "patient")])
    one, other = (np.full((1, 4, 4), level, np.uint8) for level in (10, 11))
    stamps = [copies.given(images, [0], pixels, "autoencoder").stamp for pixels in (one, other, one)]
    assert stamps[0] == stamps[2] != stamps[1]
