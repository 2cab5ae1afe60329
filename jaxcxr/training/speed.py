"""How fast a run goes, and what of its devices it uses."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcxr.parallel import chips

_RECENT = 20  # steps


class Speed:
    """The times of steps, as metrics.

    A step's end is looked for when the next one is under way, so that looking leaves the device with work to do; the
    newest step is reported the next time.
    """

    def __init__(self, began: float, images: int, dtype: str, flops: Callable[[], float]):
        """Counts in steps of `images`, on all devices together.

        Args:
          began: `time.perf_counter()` when the run began, to tell the time to its first step, with all that is
            compiled before it and the evaluation of what it starts from.
          images: a step's.
          dtype: that the networks compute in.
          flops: of a step; asked for where the devices' peak is known.
        """
        self._images, self._began = images, began
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._first: dict[str, float] | None = None
        chip = chips.of(jax.devices()[0].device_kind)
        self._peak = None if chip is None else chip.bf16 if dtype == "bfloat16" else chip.f32
        self._flops = flops() if self._peak else 0.0
        self.restart()

    def restart(self) -> None:
        """Begins anew: what was between is not the steps' time."""
        self._pending: Any = None
        self._begin(time.perf_counter())

    def _begin(self, now: float) -> None:
        self._started = self._last = now
        self._steps: list[float] = []
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def stepped(self, values: Mapping[str, jax.Array]) -> None:
        """Takes what a step returned when it was dispatched; waits for the first, which is compiling and no measure."""
        self._see()
        self._pending = values["loss"]
        if self._first is None:
            jax.block_until_ready(self._pending)
            self._first = {"seconds_to_first_step": time.perf_counter() - self._began}
            self.restart()

    def _see(self) -> None:
        if self._pending is not None:
            jax.block_until_ready(self._pending)
            now = time.perf_counter()
            self._steps.append(now - self._last)
            self._recent.append(now - self._last)
            self._last, self._pending = now, None

    def rate(self) -> float | None:
        """Images a second of the last steps, on all devices together; None before the second step."""
        return self._images * len(self._recent) / sum(self._recent) if self._recent else None

    def report(self) -> dict[str, float]:
        """The metrics of the steps since the last report: images/s, ms a step, shares, bytes."""
        if not self._steps:
            self._see()
        used, self._first = self._first or {}, {}
        if not self._steps:
            return used
        seconds = self._last - self._started
        rate = len(self._steps) * self._images / seconds
        median, late = np.percentile(np.array(self._steps) * 1e3, [50, 95])
        used |= {
            "images_per_second": rate,
            "images_per_second_per_chip": rate / jax.device_count(),
            "step_ms_median": float(median),
            "step_ms_95th": float(late),
            "data_wait": self._waited / seconds,
        }
        if self._peak:
            flops = self._flops * len(self._steps) / seconds / jax.device_count()
            used |= {"tflops_per_chip": flops / 1e12, "mfu": flops / self._peak}
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            used["memory_peak_gb"] = stats["peak_bytes_in_use"] / 1e9
        self._begin(self._last)
        return used
