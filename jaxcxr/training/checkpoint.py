"""Saving and restoring the train state; the layout is `jaxcxr.interop.orbax`'s."""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.data import settings
from jaxcxr.errors import UserError
from jaxcxr.files import locked_folder, new_folder, replace_file
from jaxcxr.interop.orbax import CHECKPOINTS, MODEL, disk_errors, latest_step
from jaxcxr.interop.pipeline import write_files
from jaxcxr.parallel.processes import on_first
from jaxcxr.training.step import State

CONFIG = "config.json"
_ITEMS = ("params", "ema", "opt_state", "nonfinite")  # of a train state, as they are kept; its step is the name
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
        "skip_nonfinite",
        "samples",
        "profile",
    ]
)


@contextlib.contextmanager
def opened(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Keeps `workdir` for this job alone, all of its processes together, after a look whether it will do.

    Raises:
      UserError: as `check_workdir`; another job trains in it; or later, in the block, its disk is full.
    """
    with contextlib.ExitStack() as held:

        def take() -> None:
            check_workdir(workdir, config)
            held.enter_context(locked_folder(workdir, private=True))

        on_first(take)
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"{workdir}: a checkpoint or its metrics cannot be written ({error.strerror});"
                f" the last complete one is step {latest_step(workdir)}; make room and run again"
            ) from error


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Sees to it that `workdir` may hold this config's run; writes nothing.

    Raises:
      UserError: it holds another config's run or something that is no run, or cannot be read.
    """
    try:
        if (workdir / CONFIG).is_file():
            old = json.loads((workdir / CONFIG).read_text())
            difference = configs.first_difference(_lasting(old), _lasting(json.loads(configs.to_json(config))))
            if difference:
                raise UserError(f"{workdir}: holds a run of another config ({difference}); name another --workdir")
        elif workdir.exists() and any(not file.name.startswith(".") for file in workdir.iterdir()):
            raise UserError(f"{workdir}: is not empty and holds no run; name another --workdir")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be read ({error.strerror}); name another --workdir") from error


def claim(workdir: Path, config: ConfigDict, files: Mapping[str, bytes] | None) -> None:
    """Makes `workdir` this config's; `files`, the pipeline's without weights, the first time.

    The config comes first: a run stopped at any moment leaves nothing else, or a folder that is known as this run's.
    """
    replace_file(workdir / CONFIG, configs.to_json(config).encode())
    if files is not None:
        with new_folder(workdir / MODEL) as folder:
            write_files(folder, files)


class Checkpoints:
    """The checkpoints of one workdir, the newest `keep` of them; saving does not wait for the disk.

    As a context it closes at its end, and when a loss is not finite: what came before is kept.
    So it is the next `save`, or `close`, that raises OSError if one could not be written.
    """

    def __init__(self, workdir: Path, keep: int):
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
            items = {name: ocp.args.StandardSave(state[name]) for name in _ITEMS}
            with disk_errors():
                self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, state: State) -> State:
        """The latest state, in the structure and on the shardings of `state` (arrays or shapes)."""
        step = self.latest()
        assert step is not None
        items = {name: ocp.args.StandardRestore(state[name]) for name in _ITEMS}
        restored = dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        return {"step": jax.device_put(jax.numpy.int32(step), state["step"].sharding), **restored}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or issubclass(kind, FloatingPointError):
            self.close()

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        with disk_errors():
            self._manager.wait_until_finished()
        self._manager.close()


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    lasting = {key: value for key, value in config.items() if key not in MAY_CHANGE}
    # A config of before a setting of preparing was there has its default, which need not be off.
    return lasting | {"data": json.loads(configs.to_json(settings.defaults())) | lasting.get("data", {})}
