"""Nearest training images: those of a search in full, kept, and of other patients where one's own do not count."""

import numpy as np
import pytest

from jaxcxr.audit import nearest as module
from jaxcxr.audit.nearest import nearest, of_network, of_pixels
from jaxcxr.audit.pixels import aligned_correlation
from jaxcxr.errors import UserError
from tests.audit.test_pixels import smooth


def features(count, seed, width=12):
    return np.random.default_rng(seed).normal(3, 1, (count, width)).astype(np.float32)


def cosines(first, second, train, held_out):
    """By an inverse in place of a root."""
    train, held_out, first, second = (each.astype(np.float64) for each in (train, held_out, first, second))
    mean = (train.mean(axis=0) + held_out.mean(axis=0)) / 2
    moments = [(each - mean).T @ (each - mean) / len(each) for each in (train, held_out)]
    covariance = (moments[0] + moments[1]) / 2
    inverse = np.linalg.inv(covariance + np.eye(len(mean)) * np.trace(covariance) / len(mean))

    def product(a, b):
        return (a - mean) @ inverse @ (b - mean).T

    return product(first, second) / np.sqrt(
        np.outer(product(first, first).diagonal(), product(second, second).diagonal())
    )


def test_it_is_the_best_cosine_without_the_mean_and_the_best_of_another_patient(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PER_SHARD", 7)
    reference, images = features(40, 1), features(20, 2)
    patients = [f"p{number // 4}" for number in range(40)]
    held_out = features(15, 3) + 0.5
    found = nearest(of_network(reference, held_out), images, reference, patients, tmp_path)
    whole = cosines(images, reference, reference, held_out)
    np.testing.assert_array_equal(found.place, whole.argmax(axis=1))
    np.testing.assert_allclose(found.similarity, whole.max(axis=1), atol=1e-12)
    whole[found.place[:, None] // 4 == np.arange(40) // 4] = -1
    np.testing.assert_allclose(found.second, whole.max(axis=1), atol=1e-12)


def test_images_of_ones_own_patient_do_not_count(tmp_path):
    reference = features(12, 1)
    patients = [f"p{number // 2}" for number in range(12)]
    found = nearest(of_network(reference, reference), reference, reference, patients, tmp_path, patients)
    assert (found.place // 2 != np.arange(12) // 2).all()
    assert found.similarity.max() < 0.999999
    assert (found.second <= found.similarity).all()


def test_one_patient_alone_leaves_no_second(tmp_path):
    reference = features(3, 1)
    found = nearest(of_network(reference, reference), features(2, 2), reference, ["p"] * 3, tmp_path)
    assert np.isnan(found.second).all()
    assert np.isfinite(found.similarity).all()


def test_pixels_find_a_mirrored_and_shifted_copy(tmp_path):
    reference = smooth(30, 1)
    images = np.roll(reference[[4, 9]], 2, axis=2)
    images[1] = images[1][:, ::-1]
    found = nearest(of_pixels(), images.reshape(2, -1), reference.reshape(30, -1), [*map(str, range(30))], tmp_path)
    assert found.place.tolist() == [4, 9]
    np.testing.assert_allclose(found.similarity, aligned_correlation(images, reference[[4, 9]]), atol=1e-12)


def test_what_is_there_is_read_and_what_is_missing_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PER_SHARD", 4)
    reference, images = features(9, 1), features(10, 2)
    patients = [*map(str, range(9))]
    first = nearest(of_network(reference, reference), images, reference, patients, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.npz"))) == 3
    searched = []
    search = module._Search.__call__
    monkeypatch.setattr(module._Search, "__call__", lambda self, *a: searched.append(len(a[0])) or search(self, *a))
    (folder / "00001.npz").unlink()
    again = nearest(of_network(reference, reference), images, reference, patients, tmp_path)
    np.testing.assert_array_equal(again.similarity, first.similarity)
    assert searched == [4, 4]
    (folder / "00000.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="is damaged"):
        nearest(of_network(reference, reference), images, reference, patients, tmp_path)
    nearest(of_network(reference, reference), images + 1, reference, patients, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
