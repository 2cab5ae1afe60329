"""A trace of some steps for the profiler of TensorBoard (the package xprof) and Perfetto."""

from pathlib import Path
from typing import Any

import jax
from tqdm.auto import tqdm


class Trace:
    """Traces a window of steps into `folder`, those of the first process, which the others' resemble.

    As a context it ends a trace that is under way at its end.
    """

    def __init__(self, folder: Path, after: int, steps: int):
        """Of the `steps` that come `after` so many others, at least 1: the first one is compiled."""
        self._folder, self._after, self._left = folder, after, steps if jax.process_index() == 0 else 0
        self._tracing = False

    def before_step(self) -> None:
        """Called ahead of each step."""
        self._after -= 1
        if self._after < 0 < self._left and not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after_step(self, values: Any) -> bool:
        """Called when a step was dispatched, with what it returned; whether a trace was written, which takes time."""
        if not self._tracing:
            return False
        self._left -= 1
        if not self._left:
            jax.block_until_ready(values)  # the device's part of it too
            self._end()
        return not self._left

    def _end(self) -> None:
        self._tracing = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # of a full disk; no reason to stop a run
            tqdm.write(f"{self._folder}: the trace could not be written ({str(error).splitlines()[0]})")
        else:
            tqdm.write(f"{self._folder}: has a trace: tensorboard --logdir {self._folder}")

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracing:
            self._end()
