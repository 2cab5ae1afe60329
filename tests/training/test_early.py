"""Early stopping, the best checkpoint, and lengths in epochs."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop.orbax import best_step, steps
from jaxcxr.training import ranges
from jaxcxr.training import train as loop
from jaxcxr.training.early import Early
from jaxcxr.training.feed import with_steps
from jaxcxr.training.train import train
from tests.training import runs

STOPPING = ConfigDict({"metric": "validation_loss", "patience": 2})


def test_it_stops_when_the_value_has_not_fallen_for_so_many_evaluations(tmp_path):
    early = Early(STOPPING, tmp_path, 0)
    early.see(0, {"validation_loss": 0.1})
    assert early.best is None, "of what a run starts from there is no checkpoint"
    for step, value, best, over in (
        (10, 5.0, 10, False),
        (20, 4.0, 20, False),
        (30, 4.0, 20, False),
        (40, 4.5, 20, True),
        (50, 3.0, 50, False),
    ):
        early.see(step, {"validation_loss": value})
        assert (early.best, early.over) == (best, over)
    early.check()
    other = Early(STOPPING, tmp_path, 0)
    other.see(60, np.zeros((2, 2)))  # a picture
    other.check()
    other.see(60, {"fd/x": 3.0})
    with pytest.raises(UserError, match=r"config\.stopping\.metric='validation_loss': evaluations give fd/x"):
        other.check()


def test_it_stops_when_a_value_that_should_rise_has_not_risen(tmp_path):
    early = Early(ConfigDict({"metric": "recall/x", "patience": 1}), tmp_path, 0)
    for step, value, best, over in ((10, 0.1, 10, False), (20, 0.3, 20, False), (30, 0.2, 20, True)):
        early.see(step, {"recall/x": value})
        assert (early.best, early.over) == (best, over)
    assert "recall/x has not risen for an evaluation; the best is step 20" in early.said()


def losses(monkeypatch, values):
    """Evaluations that give these values, one after the other."""
    left = list(values)
    monkeypatch.setitem(loop._WAYS, "eval", lambda evaluator, parameters: {"validation_loss": left.pop(0)})


def test_a_run_stops_early_keeps_its_best_and_publishes_it(tmp_path, monkeypatch, capsys):
    config = runs.autoencoder(
        **{"steps": 12, "eval_every": 2, "checkpoint_every": 1, "keep": 1, "stopping.patience": 2, "ema_decay": 0.0}
    )
    losses(monkeypatch, [9.0, 5.0, 3.0, 4.0, 6.0])
    train(config, tmp_path / "run")
    assert steps(tmp_path / "run") == [8, 4]
    assert best_step(tmp_path / "run") == 4
    assert "has not fallen for 2 evaluations; the best is step 4" in capsys.readouterr().out
    four = interop.read(tmp_path / "run").tensors["vae.encoder.conv_in.kernel"].read()
    other = runs.autoencoder(**{"steps": 4, "checkpoint_every": 4, "ema_decay": 0.0})
    other.steps = 12  # of the same schedule
    train(other, tmp_path / "other", stop_at=4)
    np.testing.assert_array_equal(
        four, interop.read(tmp_path / "other").tensors["vae.encoder.conv_in.kernel"].read(), strict=True
    )
    train(config, tmp_path / "run")  # which is over
    assert steps(tmp_path / "run") == [8, 4]
    assert "already trained to step 8; validation_loss" in capsys.readouterr().out
    config.stopping.patience = 3
    losses(monkeypatch, [6.0, 2.0, 7.0])
    train(config, tmp_path / "run", stop_at=11)
    assert (steps(tmp_path / "run"), best_step(tmp_path / "run")) == ([11, 10], 10)


def test_a_run_resumed_knows_what_came_before(tmp_path, monkeypatch):
    config = runs.autoencoder(
        **{"steps": 20, "eval_every": 2, "checkpoint_every": 2, "keep": 1, "stopping.patience": 2, "ema_decay": 0.0}
    )
    losses(monkeypatch, [9.0, 3.0, 5.0])
    train(config, tmp_path / "run", stop_at=4)
    assert (steps(tmp_path / "run"), best_step(tmp_path / "run")) == ([4, 2], 2)
    losses(monkeypatch, [5.0, 6.0])  # the first is of what it resumes from
    train(config, tmp_path / "run")
    assert (steps(tmp_path / "run"), best_step(tmp_path / "run")) == ([6, 2], 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 2, 4, 6]


def test_patience_wants_evaluations():
    with pytest.raises(UserError, match=r"config\.stopping\.patience=1: wants config\.eval_every or"):
        ranges.check(runs.autoencoder(**{"stopping.patience": 1, "eval_every": 0}))


def test_epochs_are_steps():
    config = runs.autoencoder(epochs=2.5, batch_size=4)
    images = json.loads((runs.data() / "summary.json").read_text())["splits"]["train"]
    assert with_steps(config).steps == -(-int(2.5 * images) // 4)
    assert with_steps(runs.autoencoder()).steps == 6
    with config.unlocked():
        config.data.mixture = ((str(runs.data()), 1.0),)
    assert with_steps(config).steps == -(-int(2.5 * 2 * images) // 4)
