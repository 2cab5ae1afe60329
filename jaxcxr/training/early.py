"""Early stopping by a value of the evaluations."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.workdir import read_metrics


class Early:
    """Watches a value that should fall: which step was best, and whether to stop.

    Both depend on the metrics on record alone, so that a run which is resumed stops at the same step. The state before
    the first step does not count: there is no checkpoint of it.

    Attributes:
      best: the step with the lowest value, the first of equals; None before there is one.
      over: whether as many evaluations as the patience allows have passed since the best one.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start: int):
        """Reads what is on record up to `start`; `config` is a run's `stopping`, off with a patience of 0."""
        self.best: int | None = None
        self.over = False
        self._metric, self._patience = config.metric, config.patience
        self._seen: dict[int, float] = {}
        for row in read_metrics(workdir) if self._patience else ():
            step, value = int(row["step"] or 0), row.get(self._metric)
            if step <= start and value is not None:
                self._add(step, value)

    def see(self, step: int, found: Mapping[str, float]) -> None:
        """Takes an evaluation's values; raises UserError where the one to watch is not among them."""
        if not self._patience:
            return
        if self._metric not in found:
            raise UserError(f"config.stopping.metric={self._metric!r}: evaluations give {', '.join(found)}")
        self._add(step, found[self._metric])

    def _add(self, step: int, value: float) -> None:
        if step == 0 or step in self._seen:
            return
        self._seen[step] = value
        self.best = min(self._seen, key=self._seen.__getitem__)
        self.over = sum(each > self.best for each in self._seen) >= self._patience

    def said(self) -> str:
        """Why the run stops, for people."""
        evaluations = f"{self._patience} evaluations" if self._patience > 1 else "an evaluation"
        return f"{self._metric} has not fallen for {evaluations}; the best is step {self.best}, which is kept"
