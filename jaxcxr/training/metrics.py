"""Metrics to `metrics.jsonl` and TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from jaxcxr.files import replace_file


class Metrics:
    """Writes scalars and pictures of one run that goes on after `start`, from the first process alone.

    Scalars may still be on their way from the device: each `write` puts the one before on the disk, so that
    the train step is never waited for. As a context it closes its files at the end, with what is pending unless the
    block failed.
    """

    def __init__(self, workdir: Path, start: int):
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._file = self._board = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            self._file = _open_after(workdir / "metrics.jsonl", start)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Takes values of `step`, scalars and `by_timestep`; returns those written now, of an earlier step."""
        written = self.flush()
        self._pending = (step, values)
        return written

    def flush(self) -> dict[str, float]:
        """Writes what is pending and returns it."""
        if self._pending is None:
            return {}
        step, values = self._pending
        self._pending = None
        scalars = _scalars(values)
        if scalars and self._file and self._board:
            # JSON has no NaN: null is what its readers know.
            known = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            self._file.write(json.dumps({"step": step, **known}) + "\n")
            for name, value in known.items():
                if value is not None:  # tensorboardX complains of each
                    self._board.add_scalar(name, value, step)
        return scalars

    def picture(self, step: int, name: str, pixels: np.ndarray | None) -> None:
        """A uint8 picture (H, W) for TensorBoard, if there is one."""
        if self._board and pixels is not None:
            self._board.add_image(name, pixels, step, dataformats="HW")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.flush()
        if self._file and self._board:
            self._file.close()
            self._board.close()


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as floats; `by_timestep`, of `objectives`, as a mean for each bucket that had any examples."""
    scalars = {name: float(value) for name, value in values.items() if name != "by_timestep"}
    buckets = np.asarray(values.get("by_timestep", np.zeros((0, 2))))
    for bucket, (part, share) in enumerate(buckets.tolist()):
        if share:
            scalars[f"loss/timesteps_{bucket + 1}_of_{len(buckets)}"] = part / share
    return scalars


def _open_after(file: Path, start: int) -> TextIO:
    """Opens `file` for appending, less the lines of steps that will be done again."""
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]
    replace_file(file, "".join(kept).encode())
    return file.open("a", buffering=1)
