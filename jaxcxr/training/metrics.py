"""Metrics and pictures to the workdir and to loggers."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxcxr.buckets import Spool
from jaxcxr.data.images import picture_of
from jaxcxr.files import replace_file
from jaxcxr.parallel.processes import on_first
from jaxcxr.training import loggers
from jaxcxr.workdir import METRICS, read_metric_lines

_PUSHED = 60.0  # seconds between uploads to a bucket, beside those that go before a checkpoint


class Metrics:
    """Writes scalars and pictures of one run that resumes after `start`, from the first process alone.

    Scalars go to `metrics.jsonl`, pictures to `samples/`, both to the loggers of `names`, which also get the config;
    what is on record already is left. Pictures that are not `generated`, but hold images of the data set, stay here.
    Scalars may still be on their way from the device: each `write` puts the one before on the disk, so that the train
    step is never waited for. As a context it closes its files at the end, with what is pending unless the block failed.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        names: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        *,
        generated: bool = False,
    ):
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._file: TextIO | None = None
        self._loggers: list[loggers.Logger] = []
        self._generated = generated
        self._workdir, self._on_record = workdir, set[tuple[int, str]]()
        on_first(lambda: self._open(start, names, config or {}))  # a logger that does not start is an error of all

    def _open(self, start: int, names: Sequence[str], config: Mapping[str, Any]) -> None:
        self._spool = Spool(self._workdir)
        self._file, self._on_record = _open_after(self._workdir, start, self._spool.folder)
        if self._sheet(start).is_file():
            self._on_record.add((start, "samples"))
        self._loggers = loggers.opened(names, self._workdir, self._spool.folder, start, config)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Takes values of `step`, scalars and `by_timestep`; returns those written now, of an earlier step."""
        written = self._write_pending()
        self._pending = (step, values)
        if self._file:
            self._spool.push(every=_PUSHED)
        return written

    def flush(self) -> dict[str, float]:
        """Writes what is pending, uploads it where the workdir is in a bucket, and returns it."""
        written = self._write_pending()
        if self._file:
            for logger in self._loggers:
                logger.flush()
            self._spool.push()
        return written

    def _write_pending(self) -> dict[str, float]:
        if self._pending is None:
            return {}
        step, values = self._pending
        self._pending = None
        scalars = {name: x for name, x in _scalars(values).items() if (step, name) not in self._on_record}
        if scalars and self._file:
            # JSON has no NaN: null is what its readers know.
            known = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            self._file.write(json.dumps({"step": step, **known}) + "\n")
            finite = {name: value for name, value in known.items() if value is not None}
            for logger in self._loggers:
                logger.write(step, finite)
        return scalars

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Writes a sheet, uint8 (H, W, C) of one or three channels."""
        if self._file and (step, "samples") not in self._on_record:
            png = io.BytesIO()
            picture_of(pixels).save(png, format="png")
            replace_file(self._sheet(step), png.getvalue())
            for logger in self._loggers:
                if self._generated or not logger.leaves:
                    logger.picture(step, pixels)

    def _sheet(self, step: int) -> Path:
        return self._workdir / "samples" / f"{step:08d}.png"

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.flush()
        if self._file:
            self._file.close()
        for logger in self._loggers:
            logger.close(kind is not None)
        if self._file:
            self._spool.close()


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as floats; `by_timestep`, of `objectives`, as a mean for each bucket that had any examples."""
    scalars = {name: float(value) for name, value in values.items() if name != "by_timestep"}
    buckets = np.asarray(values.get("by_timestep", np.zeros((0, 2))))
    for bucket, (part, share) in enumerate(buckets.tolist()):
        if share:
            scalars[f"loss/timesteps_{bucket + 1}_of_{len(buckets)}"] = part / share
    return scalars


def _open_after(workdir: Path, start: int, folder: Path | None = None) -> tuple[TextIO, set[tuple[int, str]]]:
    """Opens the metrics for appending, less the lines of steps that will be done again; what there is of `start`."""
    file = (folder or workdir) / METRICS
    lines = read_metric_lines(workdir)
    replace_file(file, "".join(line for line, row in lines if int(row["step"] or 0) <= start).encode())
    return file.open("a", buffering=1), {(start, name) for _, row in lines if row["step"] == start for name in row}
