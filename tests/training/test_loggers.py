"""Loggers: what each gets, what none gets, and what is refused."""

import importlib.util
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.training import loggers
from jaxcxr.training.metrics import Metrics
from tests.training import runs

SHEET = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mlflow",), r"config\.loggers=\('mlflow',\): 'mlflow' is no logger; it may be tensorboard, wandb"),
        (("tensorboard", "tensorboard"), "has tensorboard twice"),
    ],
)
def test_what_is_no_logger_is_refused(names, message):
    with pytest.raises(UserError, match=message):
        loggers.check(names)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb wants a package .*; pip install 'jaxcxr\[wandb\]'"):
        loggers.check(("wandb",))


def test_an_unknown_logger_is_an_error_before_anything_is_written(tmp_path):
    from jaxcxr.training.train import train

    with pytest.raises(UserError, match="'mlflow' is no logger"):
        train(runs.autoencoder(loggers=("mlflow",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_loggers_the_workdir_has_its_own_files_alone(tmp_path):
    with Metrics(tmp_path, 0, ()) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.picture(1, SHEET)
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "samples"}


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self, leaves):
        self.leaves, self.got = leaves, []

    def write(self, step, values):
        self.got.append((step, dict(values)))

    def picture(self, step, pixels):
        self.got.append((step, pixels.shape))

    def flush(self):
        self.got.append("flush")

    def close(self, failed):
        self.got.append(failed)


@pytest.mark.parametrize("generated", [True, False])
def test_images_of_the_data_set_go_to_no_logger_that_leaves_the_machine(tmp_path, monkeypatch, generated):
    near, far = Recorder(leaves=False), Recorder(leaves=True)
    monkeypatch.setattr(loggers, "opened", lambda *_: [near, far])
    with Metrics(tmp_path, 0, (), generated=generated) as metrics:
        metrics.write(1, {"loss": float("nan"), "rate": 2.0})
        metrics.picture(1, SHEET)
    assert near.got == [(1, SHEET.shape), (1, {"rate": 2.0}), "flush", False]
    assert far.got == (near.got if generated else near.got[1:])


def test_other_processes_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr(loggers, "opened", lambda *_: pytest.fail("a logger is opened"))
    with Metrics(tmp_path, 0, ("tensorboard",)) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.picture(1, SHEET)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ['{"id": "../up"}', "{}", '{"id": 1}', "no JSON"])
def test_a_damaged_id_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / loggers.WANDB).write_text(text)
    with pytest.raises(UserError, match=r"wandb\.json.*remove .*to log as a new run|wandb\.json.*remove it"):
        loggers._run_id(tmp_path)


CONFIG = {"steps": 7, "mesh": {"data": 3}, "samples": {"steps": 5, "prompts": ["Report of a patient."]}}


def _records(workdir: Path) -> list:
    """The records of the offline runs of a workdir, in order: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, parts = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # the rest of a block, too small for a header
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, last
                found.append(wandb_internal_pb2.Record.FromString(parts))
                parts = b""
    return found


def test_wandb_has_one_run_over_a_restart_with_config_scalars_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an extra; .ci/run installs it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 2):
        with Metrics(tmp_path, start, ("wandb",), CONFIG, generated=True) as metrics:
            metrics.write(start + 1, {"loss": 1.5, "learning_rate": 1e-3})
            metrics.picture(start + 1, SHEET)
        time.sleep(1.1)  # W&B names a start's folder by the second
    records = _records(tmp_path)
    ids = {record.run.run_id for record in records if record.HasField("run")}
    assert ids == {json.loads((tmp_path / loggers.WANDB).read_text())["id"]}
    assert {record.run.host for record in records if record.HasField("run")} == {"-"}
    assert not any(record.environment.program or record.environment.args for record in records)
    assert not list(tmp_path.rglob("requirements.txt"))
    configs = [{item.key: item.value_json for item in r.run.config.update} for r in records if r.HasField("run")]
    assert configs[0]["steps"] == "7"
    assert json.loads(configs[0]["mesh"]) == {"data": 3}
    assert json.loads(configs[0]["samples"]) == {"steps": 5}, "prompts may be reports"
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3]
    assert all(row["learning_rate"] == 1e-3 for row in rows if "loss" in row)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2


def test_the_learning_rate_is_logged(tmp_path):
    from jaxcxr.training.train import train

    config = runs.autoencoder(steps=4, log_every=1, eval_every=0, sample_every=0)
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 2, 0.01
    train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    np.testing.assert_allclose(rates, [0.005, 0.01, 0.01, 0.01], rtol=1e-6)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"learning_rate" in events.read_bytes()
