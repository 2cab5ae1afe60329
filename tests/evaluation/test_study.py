"""An augmentation study: which arms there are, what their numbers are, and a whole one on small phantoms."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr.__main__ import main
from jaxcxr.evaluation import study
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.evaluation.study import Arm, Predictions, Stage, arms, rows
from tests.training import classifiers, runs

NAMES = ("Edema", "Effusion")


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(study, "_training_images", {"real": 100, "one": 100, "two": 50}.__getitem__)


def test_an_image_is_seen_as_often_in_every_arm_and_equal_steps_are_beside_it(counted):
    found = {arm.name: arm.stages for arm in arms("real", ["one", "two"], 1000)}
    assert found == {
        "real": (Stage((("real", 1.0),), 1000),),
        "synthetic": (Stage((("one", 1.0), ("two", 0.5)), 1500),),
        "synthetic, matched": (Stage((("one", 1.0), ("two", 0.5)), 1000),),
        "real + 1x": (Stage((("real", 1.0), ("one", 1.0)), 2000),),
        "real + 1x, matched": (Stage((("real", 1.0), ("one", 1.0)), 1000),),
        "real + 2x": (Stage((("real", 1.0), ("one", 1.0), ("two", 0.5)), 2500),),
        "real + 2x, matched": (Stage((("real", 1.0), ("one", 1.0), ("two", 0.5)), 1000),),
        "synthetic, then real": (Stage((("one", 1.0), ("two", 0.5)), 1500), Stage((("real", 1.0),), 1000)),
        "synthetic, then real, matched": (Stage((("one", 1.0), ("two", 0.5)), 500), Stage((("real", 1.0),), 500)),
    }
    some = arms("real", ["one"], 10, matched=False, pretrained=False)
    assert [arm.name for arm in some] == ["real", "synthetic", "real + 1x"]


def test_the_second_stage_goes_on_from_the_first(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study, "stamp_of_records", lambda folder: folder)
    monkeypatch.setattr(study, "train", lambda config, workdir: trained.append((config, workdir)) or True)
    config = ConfigDict(
        {
            "seed": 0,
            "steps": 0,
            "epochs": 5.0,
            "eval_every": 9,
            "stopping": {"patience": 3},
            "data": {"path": "", "mixture": ()},
            "model": {"base": "", "classifier": {"a": 1}},
        }
    )
    arm = Arm("synthetic, then real", (Stage((("one", 1.0), ("two", 0.5)), 30), Stage((("real", 1.0),), 20)))
    last = study.train_arm(arm, config, tmp_path, 2)
    (first, begun), (second, ended) = trained
    assert begun.name == "seed-2-stage-1"
    assert begun.parent.name.startswith("synthetic-then-real-")
    assert (ended, ended.parent) == (last, begun.parent)
    assert (first.data.path, first.data.mixture, first.steps, first.seed) == ("one", (("two", 0.5),), 30, 2)
    assert (second.data.path, second.data.mixture, second.steps) == ("real", (), 20)
    assert (first.model.base, second.model.base) == ("", str(begun))
    assert not second.model.classifier
    assert (first.epochs, first.stopping.patience, first.eval_every) == (0.0, 0, 0)
    monkeypatch.setattr(study, "train", lambda config, workdir: False)
    assert study.train_arm(arm, config, tmp_path, 2) is None, "it was asked to stop"


def answers(count=400, seeds=2):
    """Arms of which the second sees better, on a test set of patients with two images each."""
    draw = np.random.default_rng(0)
    truth = draw.random((count, 2)) < 0.3

    def runs_of(noise):
        return np.stack([truth + noise * draw.standard_normal((count, 2)) for _ in range(seeds)])

    return Predictions(
        "test",
        NAMES,
        truth,
        np.arange(count) // 2,
        {"sex=F": draw.random(count) < 0.5, "view=PA": np.ones(count, bool)},
        draw.choice(np.array(["F|old|a", "M|old|a", ""]), count),
        {"real": runs_of(1.0), "real + 1x": runs_of(0.7)},
        {"real": np.full((seeds, 2), 0.5), "real + 1x": np.full((seeds, 2), 0.5)},
    )


def test_rows_are_means_over_seeds_and_classes_with_gains_over_the_real_arm():
    tested = answers()
    found = {(row.set, row.metric, row.group): row for row in rows(tested, resamples=200)}

    def area(arm, places, mask=slice(None)):
        runs = tested.scores[arm]
        return np.mean([[auroc(tested.truth[mask][:, k], run[mask][:, k]) for k in places] for run in runs])

    for arm in ("real", "real + 1x"):
        assert found[arm, "auroc", ""].value == pytest.approx(area(arm, (0, 1)))
        assert found[arm, "auroc", "label=Edema"].value == pytest.approx(area(arm, (0,)))
        women = tested.groups["sex=F"]
        row = found[arm, "auroc", "sex=F"]
        assert (row.value, row.n) == (pytest.approx(area(arm, (0, 1), women)), women.sum())
    gain = found["real + 1x", "auroc_gain", ""]
    assert gain.value == pytest.approx(area("real + 1x", (0, 1)) - area("real", (0, 1)))
    assert 0 < gain.low < gain.value < gain.high
    alone = found["real + 1x", "auroc", ""]
    assert gain.high - gain.low < 2 * (alone.high - alone.low)
    assert ("real", "auroc_gain", "") not in found
    assert not [group for _, _, group in found if group == "view=PA"], "everyone is no group"
    known = tested.persons != ""
    sick = tested.truth[known].any(axis=1)
    healthy = ~(tested.scores["real"][0][known] >= 0.5).any(axis=1)
    rates = [healthy[sick & (tested.persons[known] == name)].mean() for name in ("F|old|a", "M|old|a")]
    gaps = found["real", "underdiagnosis_gap", ""]
    assert min(gaps.low, gaps.high) - 1e-9 <= abs(rates[0] - rates[1]) <= gaps.high + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds 0: may be 1 or more"),
        (["--config.method=diffusion"], "has config.method='diffusion'; a study wants 'classifier'"),
        (["--synthetic", "{real}"], "--synthetic: names a folder twice"),
        (["--synthetic", "{real}/"], "--synthetic: names a folder twice"),
        (["--synthetic", "nowhere"], "nowhere: not a prepared folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, message, capsys):
    real = str(runs.data())
    capsys.readouterr()
    options = [option.format(real=real) for option in options]
    command = ["study", "--config", str(runs.ROOT / "configs" / "classifier.py"), "--real", real]
    if "--synthetic" not in options:
        command += ["--synthetic", real]
    assert main([*command, "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_whole_study(tmp_path, capsys):
    splits = [("train", "train", "validate", "test")[number % 4] for number in range(64)]
    drawn = zip(classifiers.drawn(21, 64), splits, strict=True)
    rows = [(one, split, classifiers.labels_of(one)) for one, split in drawn]
    real = classifiers.prepared(classifiers.write_folder(tmp_path / "pictures", rows), tmp_path / "data")
    options = {"data.size": 0, "steps": 2, "batch_size": 4, "eval_every": 0, "sample_every": 0, "checkpoint_every": 2}
    options |= {"model.classifier": {"architecture": "small", "classes": classifiers.CLASSES, "image_size": 32}}
    options |= {"stopping.patience": 0}
    command = ["study", "--config", str(runs.ROOT / "configs" / "classifier.py"), "--real", str(real)]
    command += ["--synthetic", str(classifiers.pictures()), "--out", str(tmp_path / "out"), "--seeds", "1"]
    command += ["--no-matched", *(f"--config.{key}={value}" for key, value in options.items())]
    code, out = main(command), capsys.readouterr()
    assert code == 0, out.err
    found = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
    assert {row["set"] for row in found} == {"real", "synthetic", "real + 1x", "synthetic, then real"}
    assert {row["metric"] for row in found} == {"auroc", "auroc_gain"}
    assert {row["n"] for row in found} == {16}
    assert "arm 4 of 4, seed 1 of 1: synthetic, then real" in out.out
    assert main(command) == 0, "it may be run again"
    assert json.loads((tmp_path / "out" / "study.json").read_text())["rows"] == found
