"""Numbers beside their floors, with intervals: halves of patients, one size for all, whole sets where asked."""

import json

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.evaluation import comparison
from jaxcxr.evaluation.comparison import Features, Row, compare
from jaxcxr.evaluation.metrics import BETTER, METRICS, frechet
from jaxcxr.evaluation.tables import FIELDS, to_csv, to_latex

RNG = np.random.default_rng(3)


def features(count, shift=0.0, per_patient=1, width=6):
    values = RNG.standard_normal((count, width)) + shift
    return Features(values, np.array([f"p{row // per_patient}" for row in range(count)], object))


def by_metric(rows):
    return {row.metric: row for row in rows}


def test_a_set_like_the_real_one_scores_as_real_images_do():
    rows, left_out = compare(features(400), features(400), ["fd", "kid", "prdc"], of="a", extractor="x", draws=10)
    assert not left_out
    for row in rows:
        assert row.n == 200
        assert row.floor_low <= row.value <= row.floor_high
        assert row.low <= row.value <= row.high


def test_a_set_unlike_the_real_one_is_above_its_floor():
    rows, _ = compare(features(400), features(400, shift=0.5), ["fd", "kid"], of="a", extractor="x", draws=10)
    for row in rows:
        assert row.low > 2 * row.floor_high
    far = by_metric(rows)["fd"]
    assert far.value == pytest.approx(6 * 0.25 + far.floor, rel=0.25)


def test_halves_share_no_patient_and_have_one_size():
    real, generated = features(90, per_patient=7), features(31)
    for reference, drawn, other in comparison._halves(real, generated, 20, 0):
        assert not {*real.patients[reference]} & {*real.patients[other]}
        for places, most in ((reference, 90), (drawn, 31), (other, 90)):
            assert len(places) == len(np.unique(places)) <= 15
            assert places.max() < most
    rows, _ = compare(real, generated, ["fd"], of="a", extractor="x", draws=5)
    assert rows[0].n == 15


def test_the_interval_is_as_wide_as_means_of_whole_sets_vary(monkeypatch):
    """The spread over halves is the standard error of the mean of all images."""
    monkeypatch.setitem(
        METRICS, "fd", METRICS["fd"]._replace(compute=lambda real, other, seed: {"fd": float(other.mean())})
    )
    found = [
        compare(features(200, width=1), features(200, width=1), ["fd"], of="a", extractor="x", draws=60)[0][0]
        for _ in range(30)
    ]
    widths = [row.high - row.low for row in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.15)


def test_whole_sets_are_compared_once_as_published():
    real, generated = features(60), features(50)
    rows, _ = compare(real, generated, ["fd"], of="a", extractor="x", halves=False)
    assert rows == [Row("a", "fd", "x", "", frechet.frechet(real.values, generated.values), *[None] * 5, 50)]


def test_the_same_seed_gives_the_same_numbers():
    real, generated = features(60), features(60)
    once, again, other = (compare(real, generated, ["kid"], of="a", extractor="x", seed=seed)[0] for seed in (1, 1, 2))
    assert once == again != other


def test_sets_too_small_say_how_many_images_are_needed():
    rows, left_out = compare(
        features(30), features(9), ["fd", "prdc", "fd_infinity"], of="a", extractor="x", group="g=1"
    )
    assert {row.metric for row in rows} == {"fd"}
    assert left_out == [
        "a: prdc of g=1 needs 12 images of each set; there are 8",
        "a: fd_infinity of g=1 needs 40 images of each set; there are 8",
    ]
    one_patient = Features(features(20).values, np.array(["p"] * 20, object))
    assert compare(one_patient, features(20), ["fd"], of="a", extractor="x")[0] == []


def test_a_metric_that_there_is_not():
    with pytest.raises(UserError, match="'fid': may be fd, fd_infinity"):
        compare(features(9), features(9), ["fid"], of="a", extractor="x")


def test_every_metric_gives_the_values_that_it_names():
    for name, metric in METRICS.items():
        real, generated = (RNG.standard_normal((max(metric.least, 40), 3)) for _ in range(2))
        assert metric.compute(real, generated, 0).keys() == metric.better.keys(), name
    assert {"recall", "fd", "vendi"} <= BETTER.keys()


ROWS = [
    Row("ours_1", "fd", "x/y", "", 1.23456, 1.0, 1.5, 0.1, 0.05, 0.2, 50),
    Row("theirs", "fd", "x/y", "", 2.0, None, None, None, None, None, 50),
    Row("ours_1", "recall", "x/y", "label=a", 0.5, 0.4, 0.6, None, None, None, 10),
]


def test_tables_have_every_number():
    lines = to_csv(ROWS).splitlines()
    assert lines[0].split(",") == list(FIELDS)
    assert lines[1] == "ours_1,fd,x/y,,1.23456,1.0,1.5,0.1,0.05,0.2,50"
    assert lines[2] == "theirs,fd,x/y,,2.0,,,,,,50"
    latex = to_latex(ROWS)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert r"ours\_1 & 1.23 (1 to 1.5) \\" in latex
    assert r"real images & 0.1 (0.05 to 0.2) \\" in latex
    assert json.dumps(latex)
