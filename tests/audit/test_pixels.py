"""Aligned pixel correlation: NumPy's own where there is one alignment, and blind to the changes that it searches."""

import numpy as np
import pytest
from PIL import Image

from jaxcxr.audit import pixels
from jaxcxr.audit.pixels import SIDE, aligned_correlation


def smooth(count, seed, side=SIDE):
    """Images with structure: noise that was enlarged four times."""
    draw = np.random.default_rng(seed)
    small = draw.uniform(0, 255, (count, side // 4, side // 4)).astype(np.float32)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small])


def searched(first, second, reach):
    """The same by a loop over every alignment and NumPy's correlation."""
    best = -1.0
    for one in (first, first[:, ::-1]):
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                rows, columns = (np.arange(max(0, s), len(first) + min(0, s)) for s in (down, right))
                here, there = one[np.ix_(rows, columns)], second[np.ix_(rows - down, columns - right)]
                best = max(best, np.corrcoef(here.ravel(), there.ravel())[0, 1])
    return best


def test_it_is_the_best_of_numpys_correlations(monkeypatch):
    monkeypatch.setattr(pixels, "ZOOMS", (1.0,))
    monkeypatch.setattr(pixels, "HALVES", (0.0,))
    first, second = smooth(5, 1), smooth(5, 2)
    wanted = [searched(a.astype(float), b.astype(float), 2) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(aligned_correlation(first, second, reach=2), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda image: image, 1 - 1e-9),
        (lambda image: image[:, ::-1], 1 - 1e-9),
        (lambda image: 0.5 * image + 40, 1 - 1e-9),
        (lambda image: np.roll(image, (3, -2), (0, 1)), 1 - 1e-6),
        (lambda image: image + np.random.default_rng(0).normal(0, 10, image.shape), 0.97),
    ],
)
def test_a_changed_copy_correlates_and_another_image_does_not(change, least):
    images = smooth(6, 3).astype(np.float64)
    changed = np.stack([change(image) for image in images])
    assert aligned_correlation(changed, images).min() >= least
    assert aligned_correlation(changed, np.roll(images, 1, axis=0)).max() < 0.9


def test_a_cropped_copy_is_found_by_enlarging():
    images = smooth(6, 4)
    low, high = SIDE / 22, SIDE - SIDE / 22
    cropped = np.stack(
        [
            np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(low, low, high, high)))
            for one in images
        ]
    )
    assert aligned_correlation(cropped, images).min() > 0.97


def test_an_image_without_contrast_correlates_with_nothing():
    flat = np.full((2, SIDE, SIDE), 7.0)
    assert np.abs(aligned_correlation(flat, smooth(2, 5))).max() == 0


def test_what_is_prepared_is_the_mean_of_its_parts():
    image = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 2 * SIDE), np.uint8)
    wanted = image.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(pixels.Pixels().prepared(image), wanted, rtol=1e-5)
    assert pixels.Stacked().features([pixels.Pixels().prepared(image), None]).shape == (2, SIDE * SIDE)
