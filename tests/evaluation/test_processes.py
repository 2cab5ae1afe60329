"""An evaluation by two processes of two devices each is that of one."""

import json

import pytest

from jaxcxr.__main__ import main
from tests.evaluation import small
from tests.training import jobs
from tests.training.classifiers import config_of

pytestmark = pytest.mark.slow


def rows_of(out):
    return json.loads((out / "evaluation.json").read_text())["rows"]


def test_processes_share_the_features_and_one_writes(tmp_path):
    from jaxcxr.training.train import train

    train(config_of("small", **{"steps": 1, "checkpoint_every": 1}), tmp_path / "classifier")
    for name, seed in (("real", 1), ("drawn", 2)):
        folder = small.write_images(tmp_path / name, 300, seed=seed, side=32)  # two shards of features
        rows = [
            {"file_name": f"{number:03}.png", "labels": [("Cardiomegaly", "Effusion")[number % 2]]}
            for number in range(300)
        ]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "--real", str(tmp_path / "real"), "--generated", str(tmp_path / "drawn")]
    command += ["--extractor", str(tmp_path / "classifier"), "--classifier", str(tmp_path / "classifier")]
    command += ["--config.evaluation.metrics=('fd','prdc')", "--config.evaluation.draws=4"]
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    several = tmp_path / "several"
    said = jobs.finish(jobs.begin([*command, "--out", str(several)], several, processes=2, devices=2), several)
    assert "page:" in said
    ours, theirs = rows_of(tmp_path / "alone"), rows_of(several)
    assert len(ours) == len(theirs) > 20
    for one, other in zip(ours, theirs, strict=True):
        assert {**one, "value": 0, "low": 0, "high": 0, "floor": 0, "floor_low": 0, "floor_high": 0} == {
            **other, "value": 0, "low": 0, "high": 0, "floor": 0, "floor_low": 0, "floor_high": 0
        }  # fmt: skip
        assert one["value"] == pytest.approx(other["value"], rel=1e-3, abs=2e-2)
