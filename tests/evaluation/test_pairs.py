import itertools
import math

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.metrics.pairs import psnr, rmse


def images(count=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (2, count, 7, 9), dtype=np.uint8)


def squared(first, second, mask=None):
    """The mean squared difference of one pair, pixel by pixel."""
    found = [
        (int(first[y, x]) - int(second[y, x])) ** 2 for y, x in np.ndindex(*first.shape) if mask is None or mask[y, x]
    ]
    return sum(found) / len(found)


def test_rmse_and_psnr_of_bytes_are_those_of_their_definitions():
    first, second = images()
    wanted = [squared(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rmse(first, second), [math.sqrt(each) for each in wanted], rtol=1e-12)
    np.testing.assert_allclose(psnr(first, second, data_range=255), [10 * math.log10(65025 / each) for each in wanted])
    np.testing.assert_allclose(psnr(first / 255, second / 255), psnr(first, second, data_range=255), rtol=1e-12)
    np.testing.assert_allclose(rmse(second, first), rmse(first, second), rtol=0)


def test_a_mask_restricts_the_mean_to_it_and_an_empty_one_gives_nan():
    first, second = images()
    mask = np.random.default_rng(1).random(first.shape) < 0.3
    mask[1] = False
    wanted = [squared(first[place], second[place], mask[place]) for place in (0, 2)]
    found = rmse(first, second, mask)
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[[0, 2]], np.sqrt(wanted), rtol=1e-12)
    ratios = psnr(first, second, mask, 255)
    assert np.isnan(ratios[1])
    np.testing.assert_allclose(ratios[[0, 2]], 10 * np.log10(65025 / np.array(wanted)), rtol=1e-12)


def test_equal_images_have_no_error_and_an_endless_ratio():
    first, _ = images()
    assert rmse(first, first).tolist() == [0, 0, 0]
    assert psnr(first, first).tolist() == [math.inf] * 3


def test_rmse_and_psnr_are_scikit_images():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second = images(seed=2)
    wanted = [metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(psnr(first, second, data_range=255), wanted, rtol=1e-12)
    wanted = [metrics.mean_squared_error(a, b) ** 0.5 for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rmse(first, second), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmse(np.zeros((1, 2, 2)), np.zeros((1, 2, 3))), "images: are of shapes .*; give two arrays"),
        (lambda: psnr(np.zeros((2, 2)), np.zeros((2, 2))), "images: are of shapes .*; give two arrays"),
        (lambda: rmse(np.zeros((2, 2, 2)), np.full((2, 2, 2), np.nan)), "pair 0 has a number that is not finite"),
        (lambda: rmse(*np.zeros((2, 1, 2, 2)), mask=np.ones((1, 2, 2))), "mask: is float64 .*give bool"),
        (lambda: rmse(*np.zeros((2, 1, 2, 2)), mask=np.ones((2, 2), bool)), "mask: is bool of shape"),
        (lambda: bootstrap([1.0, 2.0], ["a"]), r"values: are of shape \(2,\), patients of \(1,\)"),
        (lambda: bootstrap([], []), "give a patient for each value"),
    ],
)
def test_what_cannot_be_measured_is_told(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


CLUSTERS = {"d": [0.1, 0.4], "a": [1.7], "c": [3.1, 2.2, 4.5, 2.9], "b": [0.2, 5.3, 0.9]}


def clustered():
    patients = [name for name, own in CLUSTERS.items() for _ in own]
    values = np.array([value for own in CLUSTERS.values() for value in own])
    shuffled = np.random.default_rng(0).permutation(len(values))
    return values[shuffled], np.array(patients)[shuffled]


def test_the_interval_is_that_of_all_resamples_of_patients():
    """Of four patients there are 4⁴ resamples, all equally likely: the ends cut off 2.5 % of them on either side."""
    exact = np.array(
        [np.mean([value for own in drawn for value in own]) for drawn in itertools.product(CLUSTERS.values(), repeat=4)]
    )
    low, high = bootstrap(*clustered(), resamples=20_000)
    assert np.abs(exact - low).min() < 1e-12, "an end is the mean of a resample"
    assert (exact < low - 1e-9).mean() <= 0.029
    assert (exact <= low + 1e-9).mean() >= 0.021
    assert (exact > high + 1e-9).mean() <= 0.029
    assert (exact >= high - 1e-9).mean() >= 0.021


def test_equal_images_of_a_patient_tell_nothing_new():
    """Ten copies of each of 40 values have the interval of the 40; taken for 400 patients, one √10 narrower."""
    values = np.random.default_rng(3).normal(size=40)
    copies, patients = np.repeat(values, 10), np.repeat(np.arange(40), 10)
    low, high = bootstrap(copies, patients)
    assert (low, high) == pytest.approx(bootstrap(values, np.arange(40)), rel=1e-12)
    normal = 2 * 1.96 * values.std() / math.sqrt(40)
    assert high - low == pytest.approx(normal, rel=0.1)
    narrow = np.subtract(*bootstrap(copies, np.arange(400))[::-1])
    assert narrow == pytest.approx(normal / math.sqrt(10), rel=0.1)


def test_columns_are_resampled_together_and_a_statistic_may_be_any():
    values, patients = clustered()
    table = np.stack([values, 2 * values + 1], axis=1)
    low, high = bootstrap(table, patients, lambda rows: rows.mean(axis=0))
    assert low[1] == pytest.approx(2 * low[0] + 1)
    assert (low[0], high[0]) == pytest.approx(bootstrap(values, patients))
    assert bootstrap(table, patients, lambda rows: rows[:, 1].mean() - 2 * rows[:, 0].mean()) == pytest.approx((1, 1))


def test_seeds_and_levels_of_an_interval():
    values, patients = clustered()
    assert bootstrap(values, patients) == bootstrap(values, patients)
    assert bootstrap(values, patients, resamples=20) != bootstrap(values, patients, resamples=20, seed=1)
    (low, high), (inner, upper) = bootstrap(values, patients), bootstrap(values, patients, level=0.5)
    assert low < inner < upper < high


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_endless_values_and_single_patients():
    low, high = bootstrap([1.0, 2.0, np.inf], [0, 1, 2])
    assert (low, high) == (1, np.inf)
    assert np.isnan(bootstrap([1.0, 2.0], ["a", "a"])).all()
    assert bootstrap([1.0, np.nan, 1.0], [0, 1, 2]) == (1, 1)
