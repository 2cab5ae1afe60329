"""Runs resumed by their workdir alone, after a loss of files, and after Ctrl-C through a pipe."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxcxr import config as configs
from jaxcxr import workdir as workdirs
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import checksums
from jaxcxr.interop.orbax import latest_step, steps
from jaxcxr.training import schema
from jaxcxr.training.checkpoint import Checkpoints, check_workdir, resumed
from jaxcxr.training.train import train
from tests.training import jobs
from tests.training.runs import ROOT
from tests.training.test_restarts import autoencoder

# --- by the workdir alone


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run that the command line started with overrides, at step 2; its config file."""
    folder = tmp_path_factory.mktemp("started")
    file = jobs.write_config(autoencoder(), folder / "config.py")
    given = ["--config.seed", "3", "--config.model.vae.norm_num_groups=4", "--config.steps=5"]
    assert main(["train", "--config", str(file), "--workdir", str(folder / "run"), "--stop-at", "2", *given]) == 0
    return folder


def test_the_workdir_alone_resumes_a_run(started, tmp_path):
    run = shutil.copytree(started / "run", tmp_path / "run")
    assert main(["train", "--workdir", str(run), "--config.steps=4"]) == 0
    assert latest_step(run) == 4
    config = json.loads((run / "config.json").read_text())
    assert (config["seed"], config["steps"]) == (3, 4)
    assert workdirs.read_command(run) == workdirs.read_command(started / "run")


def test_an_override_of_before_that_is_left_out_is_named(started, tmp_path, capsys):
    run = shutil.copytree(started / "run", tmp_path / "run")
    start = ["train", "--config", str(started / "config.py"), "--workdir", str(run)]
    assert main([*start, "--config.seed=3"]) == 2
    error = capsys.readouterr().err
    assert (
        "model.vae.norm_num_groups was 4, is 8; the run was started with --config.model.vae.norm_num_groups=4" in error
    )
    assert f"give --workdir without --config to resume that run of {started / 'config.py'}, or" in error
    assert main(["train", "--workdir", str(run), "--config.seed=4"]) == 2
    assert "seed was 3, is 4; the run was started with --config.seed=3" in capsys.readouterr().err
    assert main(["train", "--workdir", str(run), "--config.optimizer.b1=0.8"]) == 2
    assert "optimizer.b1 was 0.9, is 0.8);" in capsys.readouterr().err
    assert latest_step(run) == 2


def test_a_run_of_before_the_command_was_kept_is_resumed(run, capsys):
    (run / "command.json").unlink(missing_ok=True)
    config = json.loads((run / "config.json").read_text())
    del config["skip_nonfinite"], config["profile"]
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--workdir", str(run)]) == 0
    assert "already trained to step 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run to resume; give --config FILE.py"),
        ("{", "config.json: .*"),
        ('{"steps": "six"}', "config.json: Expected `int`, got `str`, at `steps`"),
        ('{"a.b": 1}', "config.json: is no config"),
    ],
)
def test_a_workdir_without_a_sound_config_is_one_line(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["train", "--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message.rstrip(".*") in error
    assert error.count("\n") == 1


# --- files that are lost


def test_a_run_that_lost_its_checkpoints_or_its_model_does_not_start_anew(run):
    config, metrics = autoencoder(checkpoint_every=2), (run / "metrics.jsonl").read_bytes()
    aside = run.parent / "aside"
    (run / "model").rename(aside)
    with pytest.raises(UserError, match="model: is missing; put it back to resume"):
        train(config, run)
    aside.rename(run / "model")
    for empty in (True, False):
        if empty:
            (run / "checkpoints").rename(aside)
            (run / "checkpoints").mkdir()
        else:
            (run / "checkpoints").rmdir()
        with pytest.raises(
            UserError, match="no checkpoint, but metrics.jsonl reaches step 6; put the checkpoints back"
        ):
            train(config, run)
        assert (run / "metrics.jsonl").read_bytes() == metrics
    (run / "metrics.jsonl").unlink()
    train(config, run)
    assert latest_step(run) == 6


@pytest.mark.parametrize("every", [0, 2, 4, 100])
def test_a_finished_run_without_its_checkpoints_is_lost_whatever_their_interval(run, every):
    config = autoencoder(checkpoint_every=every)
    (run / "config.json").write_text(configs.to_json(config))
    for step in steps(run):
        shutil.rmtree(run / "checkpoints" / str(step))
    with pytest.raises(UserError, match="has no checkpoint, but metrics.jsonl reaches step 6"):
        check_workdir(run, config)


@pytest.mark.parametrize("every", [0, 2, 4])
def test_a_run_killed_before_its_first_checkpoint_is_not_lost(tmp_path, monkeypatch, every):
    """Also right before the saving of it begins, and while its checksums are written."""
    config = autoencoder(checkpoint_every=every, steps=6)
    first = every or 6

    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            train(config, run)
    assert max(step for step, _ in jobs.metrics(run, "loss")) == first
    check_workdir(run, config)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "checkpoints" / ".none_yet").unlink()  # as of a run of before there was this mark
    (run / "metrics.jsonl").write_text(lines[0])
    check_workdir(run, config)
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "checkpoints" / f"{first}.orbax-checkpoint-tmp").mkdir()
    check_workdir(run, config)
    (run / "checkpoints" / f"{first}.orbax-checkpoint-tmp").rmdir()
    with pytest.raises(UserError, match=f"reaches step {first}"):
        check_workdir(run, config)


def test_the_mark_of_a_run_without_checkpoints_goes_with_the_first(tmp_path):
    config, run = autoencoder(), tmp_path / "run"
    train(config, run, stop_at=1)
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["1"]


# --- configs of before a key was there


def test_a_run_of_before_any_key_was_there_is_resumed(tmp_path):
    """Each key and each section is left out once; it then has its default."""
    whole = json.loads(configs.to_json(configs.load(ROOT / "configs" / "base.py")))
    defaults = dataclasses.asdict(schema.Run())
    paths = [(key,) for key in defaults]
    paths += [(key, inner) for key, section in defaults.items() if isinstance(section, dict) for inner in section]
    assert len(paths) > 50
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "model").mkdir()
    for *above, key in paths:
        config = copy.deepcopy(whole)
        section = config[above[0]] if above else config
        del section[key]
        (tmp_path / "config.json").write_text(json.dumps(config))
        check_workdir(tmp_path, resumed(tmp_path, []))
        check_workdir(tmp_path, resumed(tmp_path, ["--config.steps=7"]))
        with pytest.raises(UserError, match="seed was 0, is 1"):
            check_workdir(tmp_path, resumed(tmp_path, ["--config.seed=1"]))


def test_a_long_pattern_of_a_run_is_read(tmp_path):
    config = configs.load(ROOT / "configs" / "base.py", ["--config.trainable=" + "|".join(["unet"] * 10_000)])
    schema.check(config)
    (tmp_path / "config.json").write_text(configs.to_json(config))
    check_workdir(tmp_path, resumed(tmp_path, []))


# --- Ctrl-C through a pipe


@pytest.mark.slow
def test_ctrl_c_through_a_pipe_saves(tmp_path):
    """The terminal sends SIGINT to the whole group, and what reads the pipe dies first."""
    config = jobs.write_config(autoencoder(steps=100_000, checkpoint_every=0), tmp_path / "config.py")
    run = tmp_path / "run"
    train = f"{sys.executable} -m jaxcxr train --config {config} --workdir {run}"
    script = f"trap : INT; {train} 2>&1 | tee {tmp_path / 'log'}; echo ${{PIPESTATUS[0]}} > {tmp_path / 'code'}"
    shell = subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.DEVNULL, env=jobs.environment(), start_new_session=True
    )
    jobs.until(lambda: jobs.steps_done(run) >= 5, [shell])
    os.killpg(shell.pid, signal.SIGINT)
    shell.wait(60)
    log = (tmp_path / "log").read_text()
    assert (tmp_path / "code").read_text() == "0\n", log[-3000:]
    assert "run again to resume" not in log, "tee was gone before"
    assert latest_step(run) >= 5
    assert checksums.damage(run / "checkpoints" / str(latest_step(run))) is None
    assert np.isfinite(jobs.weights(run)["vae.decoder.conv_in.kernel"]).all()
