import json
import re

import numpy as np
import pytest

from jaxcxr.training.progress import SMOOTHED, Progress
from jaxcxr.training.train import train
from tests.training import jobs
from tests.training.test_restarts import autoencoder


def test_the_bar_shows_the_mean_of_the_last_losses_and_the_rate(tmp_path, capfd):
    progress = Progress(tmp_path / "run", 30, 0)
    losses = [1 / step for step in range(1, 31)]
    for number, loss in enumerate(losses, 1):
        progress.stepped({"loss": np.float32(loss)}, 10.0 + number)
        if number > 1:  # one step late, never more
            assert progress.loss() == pytest.approx(np.mean(losses[max(0, number - 1 - SMOOTHED) : number - 1]))
    progress.close()
    final = capfd.readouterr().err.split("\r")[-1]
    assert f"loss {np.mean(losses[-SMOOTHED:]):.4f}, 40.0 images/s" in final
    assert "30/30" in final


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean(tmp_path):
    progress = Progress(tmp_path / "run", 3, 0)
    for loss in (1.0, float("nan"), 3.0, 5.0):
        progress.stepped({"loss": loss}, None)
    assert progress.loss() == 2.0
    progress.close()
    assert progress.loss() == 3.0


def test_a_run_says_what_it_starts_with_and_everything_that_it_does(tmp_path, capfd):
    config = autoencoder(steps=4, eval_every=2, sample_every=4, checkpoint_every=2, batch_size=64)
    train(config, tmp_path / "run")
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert any(re.fullmatch(r"devices: 1 cpu", line) for line in lines), out
    assert any(re.fullmatch(r"images: train \d+, validate \d+", line) for line in lines), out
    learn = next(
        re.fullmatch(r"parameters that learn: ([\d,]+) of ([\d,]+)", line) for line in lines if "that learn" in line
    )
    assert learn[1] == learn[2]
    assert any(line.startswith("memory: a state of ") for line in lines)
    assert any(line.startswith("warning: config.batch_size=64 is more than the ") for line in lines)
    for step in (2, 4):
        loss = dict(jobs.metrics(tmp_path / "run", "validation_loss"))[step]
        assert f"step {step}: validation loss {loss:.4f}" in lines
        assert f"step {step}: saving a checkpoint" in lines
    assert "step 4: picture samples/00000004.png" in lines
    mean = np.mean([loss for _, loss in jobs.metrics(tmp_path / "run", "loss")])
    final = err.split("\r")[-1]
    assert f"loss {mean:.4f}, " in final
    assert re.search(r"\d images/s", final)
    assert "compiling" not in final


def test_a_batch_that_is_not_larger_than_the_data_is_no_warning(tmp_path, capfd):
    train(autoencoder(steps=1), tmp_path / "run")
    assert "warning" not in capfd.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
