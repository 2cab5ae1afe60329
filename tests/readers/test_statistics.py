import math
from statistics import NormalDist

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.readers.statistics import (
    cohen_kappa,
    detection,
    fleiss_kappa,
    intervals,
    krippendorff_alpha,
    signed_scores,
)


def _ratings(readers, items, categories, missing=0.0, seed=0, noise=1):
    """Answers around a truth of each item, (readers, items); NaN where there is none."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(categories, size=items)
    values = np.clip(truth + draw.integers(-noise, noise + 1, (readers, items)), 0, categories - 1).astype(float)
    values[draw.random(values.shape) < missing] = np.nan
    return values


def test_detection_is_the_log_linear_formula():
    found = detection(18, 20, 5, 25)
    z = NormalDist().inv_cdf
    assert found.sensitivity == pytest.approx(z(18.5 / 21) - z(5.5 / 26))
    assert found.criterion == pytest.approx(-(z(18.5 / 21) + z(5.5 / 26)) / 2)
    perfect = detection(20, 20, 0, 20)
    assert math.isfinite(perfect.sensitivity)
    assert perfect.criterion == pytest.approx(0)
    assert detection(10, 20, 10, 20).sensitivity == 0
    assert math.isnan(detection(0, 0, 1, 2).sensitivity)


def test_roc_of_signed_confidence_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from jaxcxr.evaluation.metrics.classification import auroc, roc_curve

    draw = np.random.default_rng(0)
    truth = draw.random(80) < 0.5
    scores = signed_scores(truth ^ (draw.random(80) < 0.3), draw.integers(1, 6, 80))
    assert set(np.abs(scores)) == {1, 2, 3, 4, 5}
    assert auroc(truth, scores) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    ours = roc_curve(truth, scores)
    np.testing.assert_allclose((ours.false_positive_rate, ours.true_positive_rate), (false, true))


def test_the_interval_of_accuracy_is_statsmodels_wilson():
    proportion = pytest.importorskip("statsmodels.stats.proportion", reason="statsmodels is not installed")
    from jaxcxr.phantoms.scores import wilson

    for hits, total in ((0, 10), (7, 10), (96, 120), (385, 385)):
        theirs = proportion.proportion_confint(hits, total, method="wilson")
        assert wilson(hits, total) == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize(("readers", "categories"), [(2, 2), (5, 2), (8, 5)])
def test_fleiss_kappa_is_statsmodels(readers, categories):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater", reason="statsmodels is not installed")
    values = _ratings(readers, 40, categories, seed=readers)
    table, _ = inter_rater.aggregate_raters(values.T.astype(int))
    expected = inter_rater.fleiss_kappa(table)
    assert fleiss_kappa(values) == pytest.approx(expected, abs=1e-12)
    some = np.concatenate([values, np.where(np.arange(readers)[:, None] == 0, np.nan, values[:, :5])], axis=1)
    assert fleiss_kappa(some) == pytest.approx(expected, abs=1e-12), "items that a reader lacks do not count"


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize(("missing", "categories"), [(0, 2), (0, 5), (0.3, 5), (0.6, 4)])
def test_alpha_is_krippendorffs(level, missing, categories):
    krippendorff = pytest.importorskip("krippendorff", reason="krippendorff is not installed")
    values = _ratings(4, 50, categories, missing, seed=int(100 * missing) + categories) - 2  # as −2 … +2
    theirs = krippendorff.alpha(values, level_of_measurement=level)
    assert krippendorff_alpha(values, level) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("level", "weights"), [("nominal", None), ("ordinal", "quadratic")])
def test_cohen_kappa_is_scikit_learns(level, weights):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    first, second = _ratings(2, 30, 5, seed=3)
    theirs = metrics.cohen_kappa_score(first.astype(int), second.astype(int), weights=weights)
    assert cohen_kappa(first, second, level) == pytest.approx(theirs, abs=1e-12)


def test_what_is_not_defined_is_nan():
    same = np.ones((3, 4))
    assert math.isnan(fleiss_kappa(same))
    assert math.isnan(fleiss_kappa(same[:1]))
    assert math.isnan(krippendorff_alpha(same, "ordinal"))
    assert math.isnan(krippendorff_alpha([[1, np.nan], [np.nan, 2]], "nominal")), "no item has two answers"
    assert math.isnan(cohen_kappa([1, 1], [1, 1], "nominal"))
    assert math.isnan(cohen_kappa([], [], "nominal"))
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        fleiss_kappa([1, 0, 1])


def test_intervals_hold_readers_and_cases():
    draw = np.random.default_rng(0)
    ability = np.array([0.6, 0.7, 0.8, 0.9, 0.95, 0.65])
    right = (draw.random((6, 100)) < ability[:, None]).astype(float)

    def mean(who, cases):
        return right[np.ix_(who, cases)].mean()

    strata = np.arange(100) % 2
    low, high = intervals(strata, 6, mean)
    assert low < right.mean() < high
    alone = intervals(strata, 1, lambda who, cases: right[:1, cases].mean())
    error = math.sqrt(right[0].mean() * (1 - right[0].mean()) / 100)
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * error, rel=0.15), "of cases alone"
    readers_error = right.mean(axis=1).std(ddof=0) / math.sqrt(6)
    assert high - low > 2 * 1.96 * readers_error * 0.9, "readers differ, so the interval is wider than of cases"
    kept = intervals(strata, 6, lambda who, cases: float((strata[cases] == 0).sum()), resamples=20)
    assert kept == (50, 50), "each stratum keeps its size"
    both = intervals(strata, 6, lambda who, cases: np.array([np.nan, 1.0]), resamples=5)
    np.testing.assert_array_equal(both, [[np.nan, 1], [np.nan, 1]])
