"""Saving and restoring the train state; the layout is `jaxcxr.interop.orbax`'s."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.interop.orbax import CHECKPOINTS, MODEL, disk_errors, latest_step
from jaxcxr.interop.pipeline import write_files
from jaxcxr.training.step import State

CONFIG = "config.json"
# What may differ when a run goes on: how far it goes, what it shows, and what it runs on.
MAY_CHANGE = frozenset(
    [
        "steps",
        "log_every",
        "eval_every",
        "eval_batches",
        "sample_every",
        "checkpoint_every",
        "keep",
        "mesh",
        "sharding",
        "ema_sharding",
        "ema_memory",
        "accumulation",
        "attention",
        "remat",
        "samples",
    ]
)


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Sees to it that `workdir` can hold this config's run; writes nothing but the folder itself.

    Raises:
      UserError: it holds another config's run, something that is no run, or cannot be written.
    """
    try:
        if (workdir / CONFIG).is_file():
            old = json.loads((workdir / CONFIG).read_text())
            difference = configs.first_difference(_lasting(old), _lasting(json.loads(configs.to_json(config))))
            if difference:
                raise UserError(f"{workdir}: holds a run of another config ({difference}); name another --workdir")
        elif workdir.exists() and any(workdir.iterdir()):
            raise UserError(f"{workdir}: is not empty and holds no run; name another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); name another --workdir") from error
    if not os.access(workdir, os.W_OK):
        raise UserError(f"{workdir}: cannot be written; name another --workdir")


def claim(workdir: Path, config: ConfigDict, files: Mapping[str, bytes] | None) -> None:
    """Makes `workdir` this config's; `files`, the pipeline's without weights, the first time."""
    if jax.process_index() > 0:
        return
    (workdir / CONFIG).write_text(configs.to_json(config))
    if files is not None:
        with new_folder(workdir / MODEL) as folder:
            write_files(folder, files)


class Checkpoints:
    """The checkpoints of one workdir, the newest `keep` of them; saving does not wait for the disk.

    So it is the next `save`, or `close`, that raises UserError if one could not be written.
    """

    def __init__(self, workdir: Path, keep: int):
        self._workdir = workdir
        self._manager = ocp.CheckpointManager(
            (workdir / CHECKPOINTS).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep)
        )

    def latest(self) -> int | None:
        """The last complete step, None before the first."""
        return self._manager.latest_step()

    def save(self, state: State) -> None:
        """Saves `state` under its own step, unless it is there already."""
        step = int(state["step"])
        if step != self.latest():
            items = {name: ocp.args.StandardSave(state[name]) for name in ("params", "ema", "opt_state")}
            with self._writing():
                self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, state: State) -> State:
        """The latest state, in the structure and on the shardings of `state` (arrays or shapes)."""
        step = self.latest()
        assert step is not None
        items = {n: ocp.args.StandardRestore(state[n]) for n in ("params", "ema", "opt_state")}
        restored = dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        return {"step": jax.device_put(jax.numpy.int32(step), state["step"].sharding), **restored}

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with disk_errors():
                yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: a checkpoint cannot be written ({error.strerror});"
                f" the last complete one is step {latest_step(self._workdir)}; make room and run again"
            ) from error


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in MAY_CHANGE}
