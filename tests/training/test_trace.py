"""The profiler's window."""

import jax
from jax.profiler import ProfileData

from jaxcxr.training.trace import Trace
from jaxcxr.training.train import train
from tests.training import runs


def traced_steps(workdir):
    (file,) = (workdir / "tensorboard").rglob("*.xplane.pb")
    events = [
        event for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for event in line.events
    ]
    return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")


def test_the_window_counts_from_this_start(tmp_path, capsys):
    window = {"profile.steps": 2, "profile.after": 1}
    train(runs.autoencoder(**window), tmp_path / "run", stop_at=4)
    assert traced_steps(tmp_path / "run") == [2, 3]
    assert "tensorboard --logdir" in capsys.readouterr().out


def test_a_window_that_the_end_cuts_is_kept(tmp_path):
    train(runs.autoencoder(steps=3, **{"profile.steps": 50, "profile.after": 2}), tmp_path / "run")
    assert traced_steps(tmp_path / "run") == [3]


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    def fail():
        raise RuntimeError("no space left")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", fail)
    with Trace(tmp_path, after=1, steps=1) as trace:
        trace.before_step()
        assert not trace.after_step({})
        trace.before_step()
        assert trace.after_step({})
    assert "could not be written (no space left)" in capsys.readouterr().out
