"""Trains in children that are forked when everything is imported, and kills them: `python -m tests.training.kills`.

They are killed on their way to the first step, at any step, and while a checkpoint is being written. A child that hangs
says where.
"""

import contextlib
import faulthandler
import importlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.interop.orbax import latest_step
from jaxcxr.training.train import train
from tests.training import jobs


def assert_nothing_is_lost(config: ConfigDict, kills: int, folder: Path) -> list[list[str]]:
    """A run that is killed so often is that of a run that never was; returns a list of words for each kill."""
    config.steps, config.checkpoint_every, config.log_every = 100_000, 3, 1
    file, whole = jobs.write_config(config, folder / "config.py"), folder / "whole"
    argv = [sys.executable, "-m", "tests.training.kills", str(kills), "0", str(folder / "run"), str(file)]
    done = subprocess.run(argv, env=jobs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    print(done.stdout)
    killed = [line.split() for line in done.stdout.splitlines() if line.startswith("killed")]
    assert len(killed) == kills
    last = done.stdout.split()[-1]
    jobs.finish(jobs.start(file, whole, "--stop-at", last, "--config.checkpoint_every=0"), whole)
    jobs.assert_same(folder / "run", whole)
    assert [step for step, _ in jobs.metrics(whole, "loss")] == list(range(1, int(last) + 1))
    return killed


@contextlib.contextmanager
def _training(config: ConfigDict, workdir: Path, stop_at: int | None = None) -> Iterator[int]:
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(150, exit=True)
        try:
            train(config, workdir, stop_at)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _wait(true: Callable[[], object], child: int) -> None:
    while not true():
        ended, code = os.waitpid(child, os.WNOHANG)
        assert not ended, f"ended with {code}"
        time.sleep(0.005)


def _unfinished(workdir: Path) -> set[tuple[str, int]]:
    found = set()
    for file in workdir.glob("checkpoints/*tmp*"):
        with contextlib.suppress(FileNotFoundError):  # finished since
            found.add((file.name, file.stat().st_ino))
    return found


def main(kills: int, seed: int, workdir: Path, config: ConfigDict) -> None:
    draw, startup = random.Random(seed), 5.0
    for kill in range(kills):
        started, kept, before = time.monotonic(), latest_step(workdir) or 0, _unfinished(workdir)
        with _training(config, workdir) as child:
            if kill % 3 == 1:
                time.sleep(draw.uniform(0, startup))
            else:
                _wait(lambda kept=kept: jobs.steps_done(workdir) > kept, child)
                startup = time.monotonic() - started
                if kill % 3 == 0:
                    _wait(lambda before=before: _unfinished(workdir) - before, child)
                    time.sleep(draw.uniform(0, 0.05))
                else:
                    time.sleep(draw.uniform(0, 0.5))
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        seconds = round(time.monotonic() - started, 2)
        print("killed", seconds, jobs.steps_done(workdir), latest_step(workdir), len(_unfinished(workdir)), flush=True)
    last = (latest_step(workdir) or 0) + 3
    with _training(config, workdir, last) as child:
        assert os.waitpid(child, 0)[1] == 0
    print("finished", last)


if __name__ == "__main__":
    for slow in ("orbax.checkpoint", "tensorboardX", "tensorflow_datasets"):  # to import, in each child
        importlib.import_module(slow)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), configs.load(sys.argv[4]))
