"""Linear probes of text encoders: against scikit-learn, the conditions of the optimum, and states that are known."""

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.evaluation import probe
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.evaluation.probe import Texts

FINDINGS = ("edema", "effusion", "hernia")


def sample(n=300, width=12, seed=0):
    draw = np.random.default_rng(seed)
    states = draw.standard_normal((n, width)) * draw.uniform(0.5, 2, width)
    odds = states @ draw.standard_normal(width) - 1.5
    return states, draw.random(n) < 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("strength", [1e-4, 0.1, 1.0, 1e4])
@pytest.mark.parametrize(("n", "width"), [(300, 12), (40, 90)])
def test_the_gradient_vanishes_at_the_probes_weights(n, width, strength):
    states, labels = sample(n, width)
    found = probe.fit(states, labels, strength)
    chance = 1 / (1 + np.exp(-(states @ found.weights + found.bias)))
    error = strength * (chance - labels)
    scale = strength * abs(states).sum() / width
    np.testing.assert_allclose(states.T @ error + found.weights, 0, atol=1e-7 * scale)
    assert error.sum() == pytest.approx(0, abs=1e-7 * scale)
    np.testing.assert_allclose(found.scores(states), states @ found.weights + found.bias)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_weights_are_scikit_learns(strength):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    states, labels = sample()
    theirs = linear.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(states, labels)
    ours = probe.fit(states, labels, strength)
    assert abs(ours.weights).max() > 0.01
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4 * abs(ours.weights).max())
    assert ours.bias == pytest.approx(theirs.intercept_[0], rel=1e-4)


def test_labels_that_a_state_separates_are_fitted():
    states = np.linspace(-1, 1, 20)[:, None]
    found = probe.fit(states, states[:, 0] > 0, 1e6)
    assert ((found.scores(states) > 0) == (states[:, 0] > 0)).all()
    assert np.isfinite(found.weights).all()


def reports(n, seed, first_patient):
    """Reports of three findings; `blind` has no word of the first, and both are of another width and scale."""
    draw = np.random.default_rng(seed)
    labels = draw.random((n, 3)) < 0.4
    noise = draw.standard_normal((n, 3))
    seeing = np.column_stack([labels + 0.7 * noise, draw.standard_normal((n, 5))]) * 50 + 1000
    blind = np.column_stack([noise[:, 0], labels[:, 1:] + 0.7 * noise[:, 1:]])
    patients = np.array([f"p{first_patient + place // 2}" for place in range(n)])
    return Texts({"base": blind, "tuned": seeing}, labels, patients)


def test_a_probe_tells_what_tuning_has_taught():
    train, test = reports(400, 1, 0), reports(300, 2, 1000)
    rows, left_out = probe.probe(train, test, FINDINGS, resamples=200)
    assert left_out == []
    found = {(row.set, row.metric, row.group): row for row in rows}
    assert len(found) == 3 * 4
    assert {key[:2] for key in found} == {("base", "probe_auroc"), ("tuned", "probe_auroc"), ("tuned", "probe_gain")}
    assert abs(found["base", "probe_auroc", "finding=edema"].value - 0.5) < 0.1
    assert found["tuned", "probe_auroc", "finding=edema"].value > 0.8
    gain = found["tuned", "probe_gain", "finding=edema"]
    assert gain.low > 0.2
    none = found["tuned", "probe_gain", "finding=effusion"]
    assert none.low < 0.02
    assert none.high > -0.02
    for group in [*(f"finding={name}" for name in FINDINGS), ""]:
        both = [found[name, "probe_auroc", group].value for name in ("tuned", "base")]
        assert found["tuned", "probe_gain", group].value == pytest.approx(both[0] - both[1])
    for row in rows:
        assert row.low <= row.value <= row.high
        assert (row.extractor, row.floor, row.n) == ("linear-probe", None, 300)
    values = [found["tuned", "probe_auroc", f"finding={name}"].value for name in FINDINGS]
    assert found["tuned", "probe_auroc", ""].value == pytest.approx(np.mean(values))


def test_states_are_standardized_by_train_and_scored_on_test():
    train, test = reports(200, 1, 0), reports(100, 2, 1000)
    rows, _ = probe.probe(train, test, FINDINGS, strengths=[0.1], resamples=10)
    states = train.states["tuned"]
    mean, spread = states.mean(axis=0), states.std(axis=0)
    one = probe.fit((states - mean) / spread, train.labels[:, 0], 0.1)
    wanted = auroc(test.labels[:, 0], one.scores((test.states["tuned"] - mean) / spread))
    row = next(row for row in rows if (row.set, row.group) == ("tuned", "finding=edema"))
    assert row.value == wanted


def test_the_penalty_is_chosen_on_patients_that_are_left_out(monkeypatch):
    train, test = reports(400, 1, 0), reports(50, 2, 1000)
    parts = []
    real = probe.fit

    def watched(features, labels, strength):
        parts.append((len(features), strength))
        return real(features, labels, strength)

    monkeypatch.setattr(probe, "fit", watched)
    only = Texts({"base": train.states["base"]}, train.labels[:, :1], train.patients)
    probe.probe(
        only, Texts({"base": test.states["base"]}, test.labels[:, :1], test.patients), FINDINGS[:1], resamples=2
    )
    assert parts[:-1] == [(320, strength) for strength in probe.STRENGTHS]
    assert parts[-1][0] == 400


def test_findings_that_none_or_all_have_are_left_out():
    train, test = reports(100, 1, 0), reports(60, 2, 1000)
    test.labels[:, 2] = False
    rows, left_out = probe.probe(train, test, FINDINGS, strengths=[0.1], resamples=5)
    assert not any("hernia" in row.group for row in rows)
    assert left_out == ["probe: hernia is in no report to learn from or to test on, or in each"]
    test.labels[:] = True
    assert probe.probe(train, test, FINDINGS)[0] == []


def test_a_vocabulary_that_has_not_moved_is_kept():
    draw = np.random.default_rng(0)
    common = 20 * draw.standard_normal(16)
    base = common + draw.standard_normal((50, 16))
    same = probe.vocabulary_kept(base, 3 * base)
    assert same.cosine == pytest.approx(1)
    others = common + draw.standard_normal((50, 16))
    moved = probe.vocabulary_kept(base, others)
    assert moved.cosine > 0.98  # by what all states have in common
    assert abs(moved.centred) < 0.2
    centre = base.mean(axis=0)
    wanted = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(base - centre, others - centre, strict=True)
    ]
    assert moved.centred == pytest.approx(np.mean(wanted))
    assert np.isnan(probe.vocabulary_kept(base[:1], base[:1]).centred)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, test: (train, test._replace(patients=train.patients[: len(test.patients)])), "in train and in"),
        (lambda train, test: (train, test._replace(states={"base": test.states["base"]})), "encoders are"),
        (lambda train, test: (train, test._replace(labels=test.labels[:, :2])), "test labels are"),
        (lambda train, test: (train._replace(labels=train.labels * 1), test), "train labels are int64"),
    ],
)
def test_bad_input_is_refused(change, message):
    train, test = change(reports(40, 1, 0), reports(30, 2, 1000))
    with pytest.raises(UserError, match=message):
        probe.probe(train, test, FINDINGS)


def test_a_fit_needs_both_classes():
    with pytest.raises(UserError, match=r"labels: are bool of shape"):
        probe.fit(np.ones((3, 2)), np.ones(3, bool))
