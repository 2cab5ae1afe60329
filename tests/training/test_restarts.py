"""Runs that are stopped, killed, moved and taken up again, in processes of their own."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcxr import config as configs
from jaxcxr import methods
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.errors import UserError
from jaxcxr.interop.orbax import latest_step
from jaxcxr.training import program
from jaxcxr.training.checkpoint import check_workdir, claim, opened
from jaxcxr.training.feed import open_batches, tokenizer_folder
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import jobs, kills, runs

ONE_LEVEL = {
    "model.vae.block_out_channels": [8],
    "model.vae.down_block_types": ["DownEncoderBlock2D"],
    "model.vae.up_block_types": ["UpDecoderBlock2D"],
    "model.vae.mid_block_add_attention": False,
}


def autoencoder(**changes):
    """The smallest there is."""
    config = runs.autoencoder()
    with config.unlocked():
        config.model.vae.mid_block_add_attention = False
    # Adam's first updates are of the gradient's sign, which rounding turns where it is next to nothing.
    config.update_from_flattened_dict({**ONE_LEVEL, "optimizer.eps": 1e-3, "batch_size": 8, **changes})
    return config


def diffusion(**changes):
    """The smallest, of networks that are all described."""
    config = runs.diffusion("")
    vae = autoencoder().model.vae
    unet = pipelines.UNET | {"block_out_channels": [16], "mid_block_type": "UNetMidBlock2D"}
    unet |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    with config.unlocked():
        config.model.vae, config.model.unet = vae, unet
        config.model.text_encoder.num_hidden_layers = 1
        config.model.measure_scaling_factor = False
    config.update_from_flattened_dict({"optimizer.eps": 1e-3, "batch_size": 8, "trainable": r"unet\..*", **changes})
    return config


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_one_that_never_was(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    killed = kills.assert_nothing_is_lost(autoencoder(), 21, tmp_path)
    assert sum(int(words[-1]) > 0 for words in killed) >= 3, "few of the kills fell into the writing of a checkpoint"


@pytest.mark.slow
def test_moved_to_other_meshes_and_processes_a_run_goes_on_alike(tmp_path):
    evaluated = {"eval_every": 2, "sample_every": 2}
    config = jobs.write_config(diffusion(steps=8, checkpoint_every=2, **evaluated), tmp_path / "config.py")
    # So that parameters as small as these are split too.
    config.write_text("from jaxcxr.parallel import rules\n\nrules._MIN_SIZE = 64\n" + config.read_text())
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    jobs.finish(jobs.start(config, whole), whole)
    jobs.finish(jobs.start(config, moved, "--stop-at", "2"), moved)
    cube = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.sharding=fsdp+tensor")
    jobs.finish(jobs.start(config, moved, "--stop-at", "4", *cube, devices=4), moved)
    assert {"fsdp", "tensor"} <= _split_along(moved / "checkpoints" / "4")
    square = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.sharding=fsdp")
    said = jobs.finish(jobs.start(config, moved, "--stop-at", "6", *square, processes=2, devices=2), moved)
    assert f"{moved}: at step 6 of 8; run again to resume" in said
    assert "step 6" not in jobs.log(moved, 1).read_text(), "the first process speaks for all"
    jobs.finish(jobs.start(config, moved), moved)
    for name in ("loss", "validation_loss"):
        ours, theirs = jobs.metrics(moved, name), jobs.metrics(whole, name)
        print(name, np.abs(np.array(ours) / np.array(theirs) - 1).max(axis=0))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    sheets = [np.asarray(Image.open(run / "samples" / "00000006.png"), int) for run in (moved, whole)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1


def _split_along(checkpoint: Path) -> set[str]:
    """The axes that Orbax says its optimizer's state was split along."""
    kept = json.loads((checkpoint / "opt_state" / "_sharding").read_text())
    return {axis for leaf in kept.values() for axis in json.loads(leaf).get("partition_spec", ()) if axis}


@pytest.mark.slow
def test_two_processes_stop_together_and_one_does_not_wait_for_a_dead_one(tmp_path):
    config = autoencoder(steps=100_000, checkpoint_every=0, log_every=1, eval_every=2, sample_every=100_000)
    config, run = jobs.write_config(config, tmp_path / "config.py"), tmp_path / "run"
    started = jobs.start(config, run, "--config.sample_every=3", processes=2, devices=2)
    jobs.until(lambda: jobs.steps_done(run) >= 8, started)
    assert (run / "samples" / "00000003.png").is_file()
    started[1].send_signal(signal.SIGTERM)
    said = jobs.finish(started, run, timeout=30)  # the grace that a spot machine has
    assert f"at step {latest_step(run)} of 100000" in said

    lines = jobs.steps_done(run)
    started = jobs.start(config, run, processes=2, devices=2)
    jobs.until(lambda: jobs.steps_done(run) >= lines + 4, started)
    started[1].kill()
    assert started[0].wait(60) == 1
    assert "most likely since another of this run is gone" in jobs.log(run).read_text().splitlines()[-1]

    config = jobs.write_config(autoencoder(steps=100_000), tmp_path / "config.py")
    jobs.finish(jobs.start(config, run, "--stop-at", str(latest_step(run) + 2)), run)


def test_asked_to_stop_while_it_evaluates_it_leaves_that_and_exits_with_0(tmp_path):
    script = """
import os, signal, threading, time
from jaxcxr.training.stopping import Stopping
with Stopping() as stopping:
    assert stopping.unless_asked(max, 1, 2) == 2
    stopping.started()
    assert not stopping.agreed(1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    print(stopping.unless_asked(time.sleep, 400), stopping.agreed(2))
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, env=jobs.environment(), capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout) == (0, "None True\n"), done.stderr


def test_a_workdir_is_trained_in_by_one_job_at_a_time(tmp_path):
    config = autoencoder()
    with opened(tmp_path / "run", config):
        for again in (config, autoencoder(seed=1)):
            with pytest.raises(UserError, match="run: another process is writing it"):
                train(again, tmp_path / "run")
    with opened(tmp_path / "run", autoencoder(seed=1)):  # nothing had been begun
        pass


def test_others_cannot_read_a_workdir_unless_it_was_opened(tmp_path):
    for before, after in ((None, 0o700), (0o750, 0o750)):
        run = tmp_path / str(before)
        if before:
            run.mkdir()
            run.chmod(before)
        with opened(run, autoencoder()):
            assert stat.S_IMODE(run.stat().st_mode) == after


def test_what_a_kill_leaves_before_the_first_checkpoint_is_taken_up(tmp_path):
    """The lock, the config's partial file, the config, a partial model."""
    run = tmp_path / "run"
    (run / ".model.partial-123" / "vae").mkdir(parents=True)
    (run / ".lock").write_text("")
    (run / ".config.json.partial").write_text('{"st')
    config = autoencoder()
    check_workdir(run, config)
    (run / "config.json").write_text(configs.to_json(config))
    check_workdir(run, config)
    claim(run, config, {"model_index.json": b"{}"})
    assert [file.name for file in (run / "model").iterdir()] == ["model_index.json"]
    assert not (run / ".model.partial-123").exists()


def test_a_batch_that_is_not_finite_stops_the_run_and_is_named_or_skipped(tmp_path, monkeypatch):
    """As where a cached image has gone bad; restarts keep count."""
    config = autoencoder(checkpoint_every=2, log_every=4, steps=6)
    batches = open_batches(config, "train", load_tokenizer(tokenizer_folder(config)))
    chosen = [int(batches.batch(step)["image"].sum()) for step in (2, 3)]
    make = methods.make_loss

    def broken(*args):
        loss = make(*args)

        def spoilt(parameters, batch, keys):
            value, metrics = loss(parameters, batch, keys)
            sums = batch["image"].astype(jnp.int32).sum()
            return jnp.where(jnp.isin(sums, jnp.array(chosen)), jnp.nan, 1) * value, metrics

        return spoilt

    monkeypatch.setattr(program, "make_loss", broken)
    run, ids = tmp_path / "run", batches.ids(2)
    with pytest.raises(FloatingPointError, match="at step 3 the loss is nan") as error:
        train(config, run)
    assert str(error.value).endswith(f"from 0: {', '.join(map(str, batches.places(2)))}")
    assert not any(each in str(error.value) for each in ids), "an id may be a patient's"
    assert latest_step(run) == 2
    assert ids[0] not in (run / "metrics.jsonl").read_text()
    config.skip_nonfinite = 1
    train(config, run, stop_at=3)
    with pytest.raises(FloatingPointError, match="at step 4 .* in 2 steps in a row"):
        train(config, run)
    assert latest_step(run) == 3
    config.skip_nonfinite = 2
    train(config, run)
    assert jobs.metrics(run, "nonfinite/in_all", "nonfinite/in_a_row")[-1] == (6, 2, 0)
    assert all(np.isfinite(value).all() for value in jobs.weights(run).values())


def test_an_average_that_waits_on_the_host_is_evaluated_and_taken_up_alike(tmp_path):
    for memory in ("host", "device"):
        config = autoencoder(steps=2, eval_every=1, sample_every=2, ema_memory=memory)
        for stop in (1, 2):
            train(config, tmp_path / memory, stop_at=stop)
    jobs.assert_same(tmp_path / "host", tmp_path / "device")
