"""Thresholds keep their rate of false alarms, and shares of copies lie in their intervals, on simulated numbers."""

import numpy as np
import pytest
from scipy import stats

from jaxcxr.audit.calibrate import Threshold, calibrate, estimate_share, least_images
from jaxcxr.errors import UserError
from jaxcxr.phantoms.scores import Rate


def test_the_images_that_a_rate_needs():
    assert [least_images(rate) for rate in (0.5, 0.05, 0.01, 0.001)] == [5, 59, 299, 2995]
    for rate in (0.05, 0.01):
        assert (1 - rate) ** least_images(rate) <= 0.05 < (1 - rate) ** (least_images(rate) - 1)


def test_too_few_images_are_one_line_with_the_rate_that_they_allow():
    with pytest.raises(UserError, match=r"--rate 0.01: needs 299 held-out patients .* there are 298; .*--rate 0.011$"):
        calibrate(np.arange(298), 0.01)
    assert calibrate(np.arange(299), 0.01).value == 298
    calibrate(np.arange(298), 0.011)


def test_the_rank_is_the_greatest_whose_binomial_bound_holds():
    found = calibrate(np.random.default_rng(0).permutation(1000), 0.05)
    # P(at most k − 1 of n exceed the true quantile) by the binomial, which is the same bound said otherwise.
    assert stats.binom.cdf(found.rank - 1, 1000, 0.05) <= 0.05 < stats.binom.cdf(found.rank, 1000, 0.05)
    assert found.value == 1000 - found.rank
    assert found.expected == found.rank / 1001


def test_the_rate_holds_in_at_least_95_percent_of_calibrations():
    draw = np.random.default_rng(1)
    true = [stats.norm.sf(calibrate(draw.standard_normal(400), 0.02).value) for _ in range(600)]
    kept = np.mean(np.array(true) <= 0.02)
    assert 0.93 < kept < 0.99


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_a_share_lies_in_its_interval(share):
    draw, inside = np.random.default_rng(2), 0
    recalls_true = (0.95, 0.8, 0.99)
    for number in range(60):
        threshold = calibrate(draw.standard_normal(500), 0.01)
        false = stats.norm.sf(threshold.value)
        copied = draw.random(2000) < share
        kinds = draw.choice(recalls_true, 2000)
        flagged = draw.random(2000) < np.where(copied, kinds, false)
        recalls = [Rate.of(draw.random(200) < recall) for recall in recalls_true]
        found = estimate_share(Rate.of(flagged), threshold, recalls, seed=number)
        inside += found.low <= copied.mean() <= found.high
        assert found.high - found.low < 0.12
    assert inside >= 54


def test_rogan_and_gladen():
    threshold = Threshold(0.5, 0.01, 1, 99)
    found = estimate_share(Rate(300, 1000), threshold, [Rate(90, 100), Rate(70, 100)])
    assert found.value == pytest.approx((0.3 - 0.01) / (0.8 - 0.01))
    assert found.low < found.value < found.high


def test_a_threshold_that_finds_nothing_estimates_nothing():
    found = estimate_share(Rate(3, 100), Threshold(0.5, 0.05, 5, 99), [Rate(4, 100)])
    assert np.isnan(found).all()
