"""Saving and restoring the train state; the layout is `jaxcxr.interop.orbax`'s."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.interop.orbax import CHECKPOINTS
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
        "samples",
    ]
)


def claim(workdir: Path, config: Any) -> None:
    """Makes `workdir` this config's, or checks that it is.

    Raises:
      UserError: it holds another config's run, something that is no run, or cannot be written.
    """
    text = configs.to_json(config)
    file = workdir / CONFIG
    try:
        if file.is_file():
            difference = configs.first_difference(_lasting(file.read_text()), _lasting(text))
            if difference:
                raise UserError(f"{workdir}: holds a run of another config ({difference}); name another --workdir")
        elif workdir.exists() and any(workdir.iterdir()):
            raise UserError(f"{workdir}: is not empty and holds no run; name another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            file.write_text(text)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); name another --workdir") from error


class Checkpoints:
    """The checkpoints of one workdir, the newest `keep` of them; saving does not wait for the disk."""

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
            items = {name: ocp.args.StandardSave(state[name]) for name in ("params", "ema", "opt_state")}
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
        self._manager.wait_until_finished()
        self._manager.close()


def _lasting(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in MAY_CHANGE}
