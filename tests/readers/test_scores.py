import csv
import json
import math
import random

import numpy as np
import pytest

from jaxcxr.__main__ import main
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.phantoms.scores import wilson
from jaxcxr.readers import answers, scores
from jaxcxr.readers.statistics import cohen_kappa, detection, fleiss_kappa, krippendorff_alpha
from tests.readers.studies import make_study, write_images

HEAD = "study,reader,position,item,task,answer,confidence,ms\n"
OTHER = {"real": "synthetic", "synthetic": "real", "present": "absent", "absent": "present"}


def answered(key, file, answer, readers=None):
    """A file of answers, `answer(reader, item, truth)` -> (answer, confidence), or None of an item that is missing."""
    with file.open("w") as out:
        out.write(HEAD)
        for reader in readers or key.readers:
            for number, (item, truth) in enumerate(key.items.items()):
                said = answer(reader, item, truth)
                if said:
                    out.write(f"{key.study},{reader},1,{item},{truth.task},{said[0]},{said[1]},{1000 * (number + 1)}\n")
    return file


def _wrong(key, task, count):
    """The first so many items of each class, repeats left out."""
    found, seen = set(), {}
    for item, truth in key.items.items():
        of = (truth.expected, truth.sets)
        if truth.task == task and not truth.repeat_of and seen.setdefault(of, 0) < count:
            seen[of] += 1
            found.add(item)
    return found


def _value(found, task, measure, reader="all", of=""):
    rows = [row for row in found.rows if (row.task, row.measure, row.reader, row.of) == (task, measure, reader, of)]
    assert len(rows) == 1, f"{task} {measure} {reader} {of}: {len(rows)}"
    return rows[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two models, and its key."""
    folder = tmp_path_factory.mktemp("study")
    models = [write_images(folder / name, seed=seed) for seed, name in enumerate(("m1", "m2"), 3)]
    tasks = ("real", "realism", "match", "finding", "better")
    return make_study(folder, generated=models, tasks=tasks, count=20, repeats=6, readers=3)


def test_known_accuracy_comes_back(study, tmp_path):
    _, key = study
    wrong = {reader: _wrong(key, "real", count) for reader, count in zip(key.readers, (2, 4, 6), strict=True)}

    def answer(reader, item, truth):
        if truth.task != "real":
            return None
        right = item not in wrong[reader] and not truth.repeat_of  # those that come again are all wrong
        return (truth.expected if right else OTHER[truth.expected], 4 if right else 1)

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=50)
    shares = []
    for reader, count in zip(key.readers, (2, 4, 6), strict=True):
        real, synthetic = 20 - count, 20 - 2 * count  # of two models
        row = _value(found, "real", "accuracy", reader)
        assert row.value == (real + synthetic) / 40
        assert (row.low, row.high) == pytest.approx(wilson(real + synthetic, 40))
        assert (row.n, row.interval) == (40, "wilson")
        assert _value(found, "real", "accuracy", reader, "real").value == real / 20
        assert _value(found, "real", "accuracy", reader, "m1").value == (10 - count) / 10
        assert _value(found, "real", "sensitivity", reader).value == synthetic / 20
        assert _value(found, "real", "specificity", reader).value == real / 20
        expected = detection(synthetic, 20, count, 20)
        assert _value(found, "real", "d_prime", reader).value == pytest.approx(expected.sensitivity)
        assert _value(found, "real", "criterion", reader).value == pytest.approx(expected.criterion)
        truth = np.array([True] * 20 + [False] * 20)
        signed = np.array([4] * synthetic + [-1] * (20 - synthetic) + [-4] * real + [1] * count)
        assert _value(found, "real", "auc", reader).value == pytest.approx(auroc(truth, signed))
        shares.append((real + synthetic) / 40)
    row = _value(found, "real", "accuracy")
    assert row.value == pytest.approx(np.mean(shares))
    assert row.low < row.value < row.high
    assert (row.n, row.interval) == (120, "readers and cases")
    assert _value(found, "real", "agrees_with_itself").n == 18
    assert set(found.curves) == {("real", reader) for reader in key.readers}
    assert not [each for each in found.rows if each.task != "real"]


def test_agreement_is_of_the_answers_without_repeats(study, tmp_path):
    _, key = study
    draw = random.Random(0)
    said = {}

    def answer(reader, item, truth):
        choices = {"real": ("real", "synthetic"), "realism": "12345", "match": ("-2", "-1", "0", "1", "2")}
        if truth.task not in choices or draw.random() < 0.1:
            return None
        said[reader, item] = draw.choice(choices[truth.task])
        return said[reader, item], draw.randint(1, 5) if truth.task == "real" else ""

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=50)

    def table(task):
        items = [item for item, truth in key.items.items() if truth.task == task and not truth.repeat_of]
        numbers = {"real": 0, "synthetic": 1}
        rows = [[said.get((reader, item)) for item in items] for reader in key.readers]
        return np.array([[math.nan if one is None else float(numbers.get(one, one)) for one in row] for row in rows])

    for task in ("real", "realism", "match"):
        row = _value(found, task, "fleiss_kappa")
        assert row.value == pytest.approx(fleiss_kappa(table(task)))
        assert row.interval == "cases"
        assert _value(found, task, "alpha_nominal").value == pytest.approx(krippendorff_alpha(table(task), "nominal"))
    for task in ("realism", "match"):
        assert _value(found, task, "alpha_ordinal").value == pytest.approx(krippendorff_alpha(table(task), "ordinal"))
    assert math.isfinite(_value(found, "real", "alpha_ordinal_of_confidence").value)
    for reader in key.readers:
        pairs = [
            (truth.repeat_of, item) for item, truth in key.items.items() if truth.task == "match" and truth.repeat_of
        ]
        both = [(said[reader, a], said[reader, b]) for a, b in pairs if (reader, a) in said and (reader, b) in said]
        row = _value(found, "match", "agrees_with_itself", reader)
        assert (row.value, row.n) == (pytest.approx(np.mean([a == b for a, b in both])), len(both))
        first, second = (list(map(float, side)) for side in zip(*both, strict=True))
        kappa = _value(found, "match", "kappa_with_itself", reader)
        assert kappa.value == pytest.approx(cohen_kappa(first, second, "ordinal"), nan_ok=True)


def test_scales_have_means_shares_and_a_difference(study, tmp_path):
    _, key = study

    def answer(reader, item, truth):
        if truth.task != "realism":
            return None
        return {"hospital": "5", "m1": "4", "m2": "2"}[truth.sets[0]], ""

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=50)
    values = {of: _value(found, "realism", "mean", of=of).value for of in ("real", "synthetic", "m1", "m2")}
    assert values == {"real": 5, "synthetic": 3, "m1": 4, "m2": 2}
    assert _value(found, "realism", "share of 5", of="real").value == 1
    assert _value(found, "realism", "share of 4", of="synthetic").value == 0.5
    row = _value(found, "realism", "synthetic less real")
    assert row.value == -2
    assert -2.6 < row.low <= -2 <= row.high < -1.4


def test_the_finding_is_scored_on_real_and_synthetic_apart(study, tmp_path):
    _, key = study

    def answer(reader, item, truth):
        if truth.task != "finding":
            return None
        return ("present" if truth.sets[0] == "hospital" else "absent"), 2

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=20)
    rates = {(of, name): _value(found, "finding", name, of=of).value for of in ("real", "m1") for name in _RATES}
    assert rates == {
        ("real", "sensitivity"): 1,
        ("real", "specificity"): 0,
        ("m1", "sensitivity"): 0,
        ("m1", "specificity"): 1,
    }
    assert _value(found, "finding", "accuracy").value == 0.5
    assert _value(found, "finding", "auc").value == 0.5


_RATES = ("sensitivity", "specificity")


def test_preferences_are_of_sets_whatever_the_side(study, tmp_path):
    _, key = study

    def answer(reader, item, truth):
        if truth.task != "better":
            return None
        return ("left" if truth.sets[0] == "m2" else "right"), ""

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=20)
    row = _value(found, "better", "prefers m1 to m2", key.readers[0])
    assert (row.value, row.n, row.low) == (0, 20, 0)
    assert _value(found, "better", "agrees_with_itself").value == 1, "the sides of repeats are exchanged"
    by_side = scores.score(
        answers.read(
            [
                answered(
                    key,
                    tmp_path / "b.csv",
                    lambda reader, item, truth: ("left", "") if truth.task == "better" else None,
                )
            ],
            key,
        ),
        key,
        resamples=20,
    )
    assert _value(by_side, "better", "agrees_with_itself").value == 0
    assert _value(by_side, "better", "prefers the left image").value == 1


def test_a_reading_that_has_not_come_to_a_class_is_scored(study, tmp_path):
    _, key = study
    real = {item for item, truth in key.items.items() if key.sets[truth.sets[0]] == "real"}

    def answer(reader, item, truth):
        return ("4", "") if truth.task == "realism" and item in real else None

    found = scores.score(answers.read([answered(key, tmp_path / "a.csv", answer)], key), key, resamples=20)
    assert _value(found, "realism", "mean", of="real").value == 4
    assert not [row for row in found.rows if row.of == "synthetic"]
    assert math.isnan(_value(found, "realism", "synthetic less real").value)


def test_an_interrupted_reading_counts_as_far_as_it_is(study, tmp_path):
    _, key = study
    real = [item for item, truth in key.items.items() if truth.task == "real"]

    def answer(reader, item, truth):
        if truth.task != "real" or (reader == key.readers[0] and item in real[10:]) or reader == key.readers[2]:
            return None
        return truth.expected, 5

    said = answers.read([answered(key, tmp_path / "a.csv", answer)], key)
    found = scores.score(said, key, resamples=20)
    first = _value(found, "real", "accuracy", key.readers[0])
    assert first.n == sum(not key.items[item].repeat_of for item in real[:10])
    assert _value(found, "real", "accuracy").value == 1
    assert said.missing[key.readers[0]] == len(key.items) - 10
    assert said.silent == [key.readers[2]]


def test_one_reader_has_intervals_of_cases_and_no_agreement(study, tmp_path):
    _, key = study
    file = answered(
        key,
        tmp_path / "a.csv",
        lambda reader, item, truth: (truth.expected, 3) if truth.task == "real" else None,
        key.readers[:1],
    )
    found = scores.score(answers.read([file], key), key, resamples=20)
    assert _value(found, "real", "accuracy").interval == "cases"
    assert not [row for row in found.rows if row.measure == "fleiss_kappa"]


def test_times_are_medians_in_seconds(study, tmp_path):
    _, key = study
    file = answered(
        key, tmp_path / "a.csv", lambda reader, item, truth: (truth.expected, 3) if truth.task == "real" else None
    )
    found = scores.score(answers.read([file], key), key, resamples=10)
    seconds = [
        number + 1 for number, truth in enumerate(key.items.values()) if truth.task == "real" and not truth.repeat_of
    ]
    row = _value(found, "real", "seconds", key.readers[0])
    assert (row.value, row.low, row.high) == pytest.approx(tuple(np.percentile(seconds, (50, 25, 75))))


def test_the_verb_writes_a_page_and_tables(study, tmp_path, capsys):
    place, key = study
    answer = {
        "real": ("synthetic", 3),
        "finding": ("present", 2),
        "realism": ("4", ""),
        "match": ("-1", ""),
        "better": ("left", ""),
    }
    file = answered(key, tmp_path / "a.csv", lambda reader, item, truth: answer[truth.task])
    with file.open("a") as out:
        out.write(f"{key.study},XXXX,1,aaaa,real,real,1,1\n")
    command = ["readers", "score", "--key", str(place.with_name("study.key.json")), "--resamples", "20"]
    out = tmp_path / "scores"
    assert main([*command, "--out", str(out), str(file)]) == 0
    said = capsys.readouterr().out
    assert "1 line does not count: no reader of the study" in said
    assert "real: accuracy 0.5" in said
    numbers = json.loads((out / "scores.json").read_text())
    assert numbers["left_out"] == {"no reader of the study": 1}
    with (out / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len(numbers["rows"])
    row = next(row for row in rows if row["measure"] == "accuracy" and row["reader"] == "all" and not row["of"])
    assert float(row["value"]) == 0.5
    assert next(row for row in rows if row["measure"] == "fleiss_kappa")["value"] == "", "not defined"
    page = (out / "index.html").read_text()
    assert "no reader of the study" in page
    assert "share of −1, a key finding is missing" in page
    assert page.count("<svg") == 2
    assert "<img" not in page
    assert "PLANTED" not in page + said + (out / "scores.json").read_text()
    assert main([*command, "--out", str(out), str(file)]) == 0, "again"
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(file.read_text().replace(key.study, "another"))
    assert main([*command, "--out", str(tmp_path / "other"), str(wrong)]) == 2
    assert main([*command, "--out", str(tmp_path / "other"), str(tmp_path / "none.csv")]) == 2
    assert main([*command, "--out", str(place), str(file)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert "another" in errors[0]
    assert not (tmp_path / "other").exists()
