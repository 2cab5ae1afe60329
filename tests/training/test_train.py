import json
import os
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from jaxcxr import config as configs
from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import initialize
from jaxcxr.training.model import assemble
from jaxcxr.training.stopping import Stopping
from jaxcxr.training.train import train
from tests.training import jobs, runs
from tests.training.jobs import assert_same, metrics, weights

EVALUATED = {"eval_every": 3, "sample_every": 6}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ae") / "run"
    train(runs.autoencoder(), workdir)
    return workdir


@pytest.fixture(scope="module")
def diffusion(autoencoder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("diffusion") / "run"
    train(runs.diffusion(autoencoder, **EVALUATED), workdir)
    return workdir


def test_stopped_and_started_again_elsewhere_goes_on_bit_for_bit(autoencoder, diffusion, tmp_path, monkeypatch):
    train(runs.diffusion(autoencoder, **EVALUATED), tmp_path / "run", stop_at=2)
    for file in (tmp_path / "run").rglob("*"):
        os.utime(file, (2e9, 2e9))
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    train(runs.diffusion(autoencoder, **EVALUATED), tmp_path / "run")
    assert_same(tmp_path / "run", diffusion)


def test_a_checkpoint_saved_on_the_way_is_that_of_its_step(autoencoder, diffusion, tmp_path):
    """Saving goes on behind the steps that follow, which reuse the state's memory."""
    shutil.copytree(diffusion, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    train(runs.diffusion(autoencoder, **EVALUATED), tmp_path / "run")
    assert_same(tmp_path / "run", diffusion)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_a_full_disk_keeps_the_last_checkpoint(autoencoder, tmp_path, full_disk):
    train(runs.autoencoder(), tmp_path / "run", stop_at=3)
    with full_disk(), pytest.raises(UserError, match="File too large.; the last complete one is step 3"):
        train(runs.autoencoder(), tmp_path / "run")
    train(runs.autoencoder(), tmp_path / "run")
    ours, theirs = weights(tmp_path / "run"), weights(autoencoder)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_what_learns_is_what_the_pattern_names(autoencoder, diffusion, tmp_path):
    config = runs.diffusion(autoencoder, steps=1, trainable=r"unet\..*attn2.*")
    train(config, tmp_path / "run")
    moved, whole = weights(tmp_path / "run", ema=False), weights(diffusion, ema=False)
    start = initialize(interop.load(diffusion), jax.random.key(config.seed))
    vae = weights(autoencoder)
    for name, value in moved.items():
        first = vae[name] if name.startswith("vae.") else np.asarray(start[name])
        learns = name.startswith("unet.") and "attn2" in name
        # The key's projection has a zero gradient where all tokens agree; most parameters must move.
        assert learns or (value == first).all(), name
        if name.startswith("vae."):
            np.testing.assert_array_equal(whole[name], first)
    changed = {n for n in moved if not n.startswith("vae.") and (moved[n] != np.asarray(start[n])).any()}
    assert len(changed) >= 0.9 * sum("attn2" in n for n in moved if n.startswith("unet."))
    assert any((whole[n] != np.asarray(start[n])).any() for n in whole if n.startswith("text_encoder.")), (
        "the text encoder learns where the pattern names it"
    )


def test_the_average_follows_the_weights(diffusion):
    raw, averaged = weights(diffusion, ema=False), weights(diffusion)
    start = initialize(interop.load(diffusion), jax.random.key(0))
    name = "unet.conv_in.kernel"
    assert (raw[name] != averaged[name]).any()
    travelled = np.linalg.norm(averaged[name] - np.asarray(start[name]))
    assert 0.2 < travelled / np.linalg.norm(raw[name] - np.asarray(start[name])) < 1


def test_the_loss_falls(autoencoder, tmp_path):
    config = runs.autoencoder(steps=60, log_every=10, checkpoint_every=60)
    config.optimizer.learning_rate = 3e-3
    train(config, tmp_path / "run")
    losses = [value for _, value in metrics(tmp_path / "run", "loss")]
    assert losses[-1] < 0.3 * metrics(autoencoder, "loss")[0][1]


def test_bfloat16_computes_in_it_and_keeps_float32_weights(autoencoder, tmp_path):
    train(runs.autoencoder(dtype="bfloat16", steps=3), tmp_path / "run")
    ours, theirs = metrics(tmp_path / "run", "loss"), metrics(autoencoder, "loss")[:3]
    np.testing.assert_allclose(ours, theirs, rtol=0.03)
    assert ours != theirs
    assert all(value.dtype == np.float32 for value in weights(tmp_path / "run").values())


def test_the_workdir_holds_what_it_should(diffusion):
    assert sorted(file.name for file in (diffusion / "samples").iterdir()) == ["00000000.png", "00000006.png"]
    assert json.loads((diffusion / "config.json").read_text())["steps"] == 6
    assert list((diffusion / "tensorboard").glob("events*"))
    assert [step for step, _ in metrics(diffusion, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in metrics(diffusion, "validation_loss")] == [0, 3, 6]
    scale = json.loads((diffusion / "model" / "vae" / "config.json").read_text())["scaling_factor"]
    assert scale == interop.load(diffusion).vae.config.scaling_factor != 0.18215


def test_a_run_at_another_size_than_its_base_records_its_own(diffusion):
    """Which is what is drawn where no size is asked for, here and in diffusers."""
    files = interop.read(diffusion).files
    base = json.loads(files["unet/config.json"])
    assert base["sample_size"] == runs.SIZE // 2
    config = runs.diffusion(diffusion, **{"data.size": 4 * runs.SIZE})
    config.model.unet, config.model.text_encoder = {}, {}
    tuned = assemble(config, files, lambda: None)
    assert json.loads(tuned.files["unet/config.json"]) == base | {"sample_size": 2 * runs.SIZE}
    assert tuned.unet.config.sample_size == 2 * runs.SIZE
    config.data.size = runs.SIZE
    assert assemble(config, files, lambda: None).files["unet/config.json"] == files["unet/config.json"]


def test_the_scaling_factor_makes_the_latents_unit(autoencoder, diffusion):
    from jaxcxr.data.loader import Batches, open_split
    from jaxcxr.methods.diffusion import draw_latents

    pipeline = interop.load(diffusion)
    batches = Batches(open_split(runs.data(), "train"), tokenizer=pipeline.tokenizer, seed=3, batch_size=32)
    latents = draw_latents(pipeline, batches.batch(0), jax.random.split(jax.random.key(0), 32))
    assert abs(float(latents.std()) - 1) < 0.1


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(autoencoder, diffusion, tmp_path):
    shutil.copytree(diffusion, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    missing = [line for line in lines if '"validation_loss"' in line and '"step": 3,' in line]
    file.write_text("".join(line for line in lines if line not in missing))
    train(runs.diffusion(autoencoder, **EVALUATED), tmp_path / "run")
    assert len(missing) == 1
    assert_same(tmp_path / "run", diffusion)


def test_asked_at_the_last_step_a_run_is_evaluated_all_the_same(autoencoder, diffusion, tmp_path, monkeypatch):
    """No start would make up for it."""
    started = Stopping.started

    def asked(self):
        started(self)
        self.asked = True

    config = runs.diffusion(autoencoder, **EVALUATED)
    train(config, tmp_path / "run", stop_at=5)
    monkeypatch.setattr(Stopping, "started", asked)
    train(config, tmp_path / "run")
    assert_same(tmp_path / "run", diffusion)
    assert (tmp_path / "run" / "samples" / "00000006.png").is_file()


def test_all_is_compiled_before_the_first_step_so_that_no_stop_has_to_wait_for_it(autoencoder, tmp_path, monkeypatch):
    compiled, begun = [], []
    monkeypatch.setattr(Stopping, "started", lambda self: begun.append(len(compiled)))

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(runs.diffusion(autoencoder, **EVALUATED), tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert {"jit(step)", "jit(pictures)"} <= set(compiled)
    assert compiled[begun[0] :] == []


def test_a_finished_run_is_left_alone(diffusion, autoencoder, capsys):
    before = (diffusion / "metrics.jsonl").read_text()
    train(runs.diffusion(autoencoder, **EVALUATED), diffusion)
    assert "already trained to step 6" in capsys.readouterr().out
    assert (diffusion / "metrics.jsonl").read_text() == before


def test_a_workdir_of_another_config_is_refused(diffusion, autoencoder):
    before = (diffusion / "config.json").read_text()
    with pytest.raises(UserError, match=r"optimizer\.learning_rate was 0\.0001, is 0\.5"):
        train(runs.diffusion(autoencoder, **{"optimizer.learning_rate": 0.5}), diffusion)
    assert (diffusion / "config.json").read_text() == before


def test_a_folder_that_is_no_run_is_refused(autoencoder, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        train(runs.autoencoder(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": r"unett\..*"}, "no parameter has such a name"),
        ({"optimizer.rates": (("text_encoder", 0.1),)}, "rates: 'text_encoder' is no parameter's whole name"),
        ({"model.base": ""}, r"config\.model\.vae: describe it, or set config\.model\.base"),
        ({"model.base": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"profile.after": 0}, r"config\.profile\.after=0: may be 1 or more"),
        ({"mesh.data": 3}, "does not multiply to 1 devices"),
        ({"data.path": "/nowhere"}, "/nowhere"),
        ({"data.size": 32}, "holds images of 16 pixels, config.data.size is 32"),
        ({"model.text_encoder.hidden_size": 64}, "cross_attention_dim is 32, the text encoder's hidden_size 64"),
        ({"model.unet.in_channels": 9}, "in_channels is 9, the autoencoder has 4"),
    ],
)
def test_bad_values_are_told_in_one_line(autoencoder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(runs.diffusion(autoencoder, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_workdir_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        train(runs.autoencoder(), tmp_path / "run")


def test_a_workdir_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train(runs.autoencoder(), tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = runs.autoencoder(steps=9)
    train(config, tmp_path / "run", stop_at=3)
    with config.unlocked():
        config.steps = 9
    (tmp_path / "run" / "config.json").unlink()
    config.optimizer.learning_rate = 1e30
    (tmp_path / "run" / "config.json").write_text(configs.to_json(config))
    with pytest.raises(FloatingPointError, match="at step"):
        train(config, tmp_path / "run")
    assert interop.orbax.latest_step(tmp_path / "run") == 3


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(tmp_path):
    config = runs.autoencoder(steps=100_000, checkpoint_every=0)
    file, run, whole = jobs.write_config(config, tmp_path / "config.py"), tmp_path / "run", tmp_path / "whole"
    started = jobs.start(file, run)
    jobs.until(lambda: jobs.steps_done(run) >= 5, started)
    started[0].send_signal(signal.SIGTERM)
    assert "run again to resume" in jobs.finish(started, run)
    stopped = interop.orbax.latest_step(run)
    assert stopped is not None
    assert stopped >= 5
    for workdir in (run, whole):
        jobs.finish(jobs.start(file, workdir, "--stop-at", str(stopped + 3)), workdir)
    assert_same(run, whole)
