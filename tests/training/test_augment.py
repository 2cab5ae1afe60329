"""Training images that are changed a little: against SciPy, by key alone, and never mirrored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxcxr.errors import UserError
from jaxcxr.training import ranges
from jaxcxr.training.augment import make_augment, turned
from jaxcxr.training.train import train
from tests.training import jobs, runs


def smooth(side: int) -> np.ndarray:
    """An image (side, side) without a symmetry."""
    y, x = np.mgrid[:side, :side] / side
    return (128 + 60 * np.sin(3 * x + 1) * np.cos(4 * y) + 50 * x * y).astype(np.float32)


@pytest.mark.parametrize(("angle", "shift"), [(0.0, (0.0, 0.0)), (0.1, (0.0, 0.0)), (-0.3, (2.5, -4.0))])
def test_turning_and_moving_is_scipys(angle, shift):
    image = smooth(33)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix, middle = np.array([[cosine, sine], [-sine, cosine]]), np.array([16, 16])
    wanted = scipy.ndimage.affine_transform(
        image, matrix, offset=middle - matrix @ (middle + np.array(shift)), order=1, mode="nearest"
    )
    found = turned(jnp.asarray(image), jnp.float32(angle), jnp.array(shift))
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_left_stays_left_and_a_turn_is_counterclockwise():
    image = np.zeros((17, 17), np.float32)
    image[8, 14] = 1  # at the right; a quarter turn counterclockwise takes it to the top
    found = np.asarray(turned(jnp.asarray(image), jnp.float32(np.pi / 2), jnp.zeros(2)))
    assert found[2, 8] == pytest.approx(1, abs=1e-4)
    down = np.asarray(turned(jnp.asarray(image), jnp.float32(0), jnp.array([3.0, -1.0])))
    assert down[11, 13] == pytest.approx(1)


def augmented(config, images, seed=0, keys=None):
    keys = jax.random.split(jax.random.key(seed), len(images)) if keys is None else keys
    return np.asarray(make_augment(config)({"image": jnp.asarray(images)}, keys)["image"])


def test_each_image_is_changed_by_its_key_within_the_bounds():
    images = np.repeat(smooth(32).astype(np.uint8)[None, :, :, None], 200, axis=0)
    config = runs.autoencoder(**{"augment.brightness": 0.1})
    found = augmented(config, images)
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    change = found.astype(float).mean(axis=(1, 2, 3)) - images[0].mean()
    assert -25.6 <= change.min() < -20
    assert 20 < change.max() <= 25.6
    keys = jax.random.split(jax.random.key(0), 200)
    np.testing.assert_array_equal(augmented(config, images[:5], keys=keys[3:8]), found[3:8])

    moved = augmented(
        runs.autoencoder(**{"augment.translation": 0.25}),
        np.eye(1, 32 * 32, 528, dtype=np.uint8).reshape(1, 32, 32, 1).repeat(300, 0) * 255,
    )
    places = np.array([np.unravel_index(image.argmax(), (32, 32)) for image in moved[..., 0]])
    assert np.abs(places - 16).max() == 8
    assert np.unique(places, axis=0).shape[0] > 100


def test_off_by_default():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    np.testing.assert_array_equal(augmented(runs.autoencoder(), images), images)


@pytest.mark.slow
def test_a_run_with_it_resumes_bit_for_bit_and_validates_without(tmp_path):
    changes = {"augment.rotation": 5.0, "augment.translation": 0.05, "augment.brightness": 0.1, "eval_every": 6}
    config = runs.autoencoder(**changes)
    train(config, tmp_path / "whole")
    for stop in (2, 5, None):
        train(config, tmp_path / "stopped", stop_at=stop)
    jobs.assert_same(tmp_path / "stopped", tmp_path / "whole")
    plain = runs.autoencoder(eval_every=6)
    train(plain, tmp_path / "plain")
    first = [jobs.metrics(tmp_path / name, "loss")[0][1] for name in ("whole", "plain")]
    assert first[0] != first[1]
    # Both start from the same weights: before any step the validation loss is that of unchanged images.
    starts = [jobs.metrics(tmp_path / name, "validation_loss") for name in ("whole", "plain")]
    assert starts[0][0] == starts[1][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.rotation": 46.0}, r"config\.augment\.rotation=46\.0: may be from 0 to 45"),
        ({"augment.translation": 0.6}, r"config\.augment\.translation=0\.6: may be from 0 to 0\.5"),
        ({"augment.brightness": -0.1}, r"config\.augment\.brightness=-0\.1"),
    ],
)
def test_values_out_of_range_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        ranges.check(runs.autoencoder(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.cache": "somewhere", "augment.rotation": 5.0},
            r"config\.augment\.rotation: .*data\.cache holds latents",
        ),
        (
            {"method": "projection", "augment.brightness": 0.1},
            r"config\.augment\.brightness: .*'projection' reads none",
        ),
    ],
)
def test_a_run_without_images_has_nothing_to_change(changes, message):
    with pytest.raises(UserError, match=message):
        make_augment(runs.autoencoder(**changes))
