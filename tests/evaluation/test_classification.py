"""Metrics of classifiers: against scikit-learn, and against their definitions written out."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import classification as metrics

SKLEARN = "scikit-learn is not installed"


def cases():
    """Labels and scores with and without ties, rare and common."""
    for seed, (n, share, decimals) in enumerate(itertools.product((7, 200), (0.1, 0.5), (1, 2, 16))):
        draw = np.random.default_rng(seed)
        labels = draw.random(n) < share
        labels[:2] = True, False
        yield labels, np.round(np.clip(draw.normal(0.3 + 0.2 * labels, 0.3), 0, 1), decimals)


def test_auroc_is_the_chance_that_a_positive_scores_more():
    for labels, scores in cases():
        pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
        assert metrics.auroc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
        assert metrics.auroc(labels, -scores) == pytest.approx(1 - np.mean(pairs), abs=1e-12)
    assert metrics.auroc([True, False], [0.5, 0.5]) == 0.5
    assert np.isnan(metrics.auroc([True, True], [0, 1]))
    assert np.isnan(metrics.auroc([False], [1]))


def test_the_area_under_the_curve_is_auroc():
    for labels, scores in cases():
        curve = metrics.roc_curve(labels, scores)
        area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
        assert area == pytest.approx(metrics.auroc(labels, scores), abs=1e-12)
        for false, true, threshold in zip(*curve, strict=True):
            called = scores >= threshold
            assert (false, true) == (called[~labels].mean(), called[labels].mean())
    assert np.isnan(metrics.roc_curve([True], [1]).false_positive_rate).all()


def test_average_precision_adds_precision_where_recall_grows():
    for labels, scores in cases():
        recall, wanted = 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            called = scores >= threshold
            now = (labels & called).sum() / labels.sum()
            wanted += (now - recall) * labels[called].mean()
            recall = now
        assert metrics.average_precision(labels, scores) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(metrics.average_precision([False, False], [0, 1]))


def test_no_threshold_has_a_better_f1_than_the_best():
    for labels, scores in cases():
        best = metrics.best_f1_threshold(labels, scores)
        values = {}
        for threshold in scores:
            called = scores >= threshold
            hits, missed, false = (labels & called).sum(), (labels & ~called).sum(), (~labels & called).sum()
            values[threshold] = 2 * hits / (2 * hits + missed + false)
            assert metrics.f1_at(labels, scores, threshold) == pytest.approx(values[threshold], abs=1e-12)
            assert metrics.accuracy_at(labels, scores, threshold) == (labels == called).mean()
        assert best == max(threshold for threshold, value in values.items() if value == max(values.values()))
    assert np.isnan(metrics.best_f1_threshold([False], [1]))
    assert np.isnan(metrics.f1_at([False], [1], 2))
    assert np.isnan(metrics.f1_at([True], [1], np.nan))
    assert np.isnan(metrics.accuracy_at([True], [1], np.nan))


def test_calibration_error_is_the_mean_gap_of_bins():
    for labels, scores in cases():
        for bins in (1, 10, 15):
            wanted = 0.0
            for place in range(bins):
                inside = (scores > np.linspace(0, 1, bins + 1)[place]) | (place == 0)
                inside &= scores <= np.linspace(0, 1, bins + 1)[place + 1]
                if inside.any():
                    wanted += inside.mean() * abs(labels[inside].mean() - scores[inside].mean())
            assert metrics.expected_calibration_error(labels, scores, bins) == pytest.approx(wanted, abs=1e-12)
        assert metrics.brier(labels, scores) == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-12)
    # 0.2 is an edge of five bins, and belongs to the lower one: two gaps, of 0.15 and 0.3.
    found = metrics.expected_calibration_error([False, False, True], [0.1, 0.2, 0.7], bins=5)
    assert found == pytest.approx((0.3 + 0.3) / 3)


def test_pearson_is_scipys():
    draw = np.random.default_rng(3)
    first = draw.normal(1e3, 1e-3, 50)
    second = first + draw.normal(0, 1e-3, 50)
    assert metrics.pearson(first, second) == pytest.approx(scipy.stats.pearsonr(first, second)[0], abs=1e-12)
    assert metrics.pearson(first, -2 * first) == pytest.approx(-1, abs=1e-12)
    assert np.isnan(metrics.pearson(first, np.full(50, 0.1)))
    assert np.isnan(metrics.pearson([1], [2]))


def test_confusion_counts_what_was_drawn_unasked():
    asked = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], bool)
    seen = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1]], bool)
    found = metrics.confusion(asked, seen)
    # Of the images that ask for the first but not the second, one of two shows the second.
    np.testing.assert_array_equal(found[0], [2 / 3, 1 / 2, 0])
    np.testing.assert_array_equal(found[1], [1, 1 / 2, 1 / 2])
    assert np.isnan(found[2]).all()
    perfect = metrics.confusion(asked, asked)
    np.testing.assert_array_equal(perfect[:2], np.eye(3)[:2])


def test_underdiagnosis_is_of_the_sick_alone():
    groups = ["F", "F", "F", "M", "M", "M", "X"]
    sick = np.array([1, 1, 0, 1, 1, 0, 0], bool)
    called_healthy = np.array([1, 0, 1, 0, 0, 1, 1], bool)
    found = metrics.underdiagnosis(called_healthy, sick, groups)
    assert found == ({"F": 0.5, "M": 0.0}, {"F": 2, "M": 2}, 0.5)
    sick[-1] = True
    assert metrics.underdiagnosis(called_healthy, sick, groups).gap == 1
    assert metrics.underdiagnosis(called_healthy, sick, groups, least=2).gap == 0.5
    assert np.isnan(metrics.underdiagnosis(called_healthy, sick, ["one"] * 7).gap)


@pytest.mark.parametrize("decimals", [2, 16])
def test_values_are_scikit_learns(decimals):
    sklearn = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
    draw = np.random.default_rng(decimals)
    labels = draw.random(3000) < 0.2
    scores = np.round(np.clip(draw.normal(0.4 + 0.15 * labels, 0.2), 0, 1), decimals)
    assert metrics.auroc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)
    wanted = sklearn.average_precision_score(labels, scores)
    assert metrics.average_precision(labels, scores) == pytest.approx(wanted, abs=1e-12)
    assert metrics.brier(labels, scores) == pytest.approx(sklearn.brier_score_loss(labels, scores), abs=1e-12)
    for ours, theirs in zip(
        metrics.roc_curve(labels, scores), sklearn.roc_curve(labels, scores, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    threshold = metrics.best_f1_threshold(labels, scores)
    best = sklearn.f1_score(labels, scores >= threshold)
    assert metrics.f1_at(labels, scores, threshold) == pytest.approx(best, abs=1e-12)
    precision, recall, _ = sklearn.precision_recall_curve(labels, scores)
    assert best == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-300)), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auroc([0, 1], [0.1, 0.2]), "labels: are int64"),
        (lambda: metrics.auroc([True, False], [0.1]), "scores of"),
        (lambda: metrics.auroc([True, False], [0.1, np.nan]), "scores: number 1 is nan"),
        (lambda: metrics.brier([True], [1.5]), "probabilities: number 0 is 1.5"),
        (lambda: metrics.pearson([1, 2], [1]), "numbers: are of shapes"),
        (lambda: metrics.confusion(np.zeros((2, 3), bool), np.zeros((2, 3))), "classes: are bool"),
        (lambda: metrics.underdiagnosis([True], [True, False], ["a", "b"]), "underdiagnosis: is of"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
