"""Early stopping by a value of the evaluations."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.workdir import read_metrics


class Early:
    """Follows a value that is to fall, and tells the best step and when to stop.

    What it tells depends on the metrics on record alone, so that a run which is resumed stops at the same step. The
    state before the first step does not count: there is no checkpoint of it.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start: int):
        """Reads what is on record up to `start`; `config` is a run's `stopping`, off with a patience of 0."""
        self._metric, self._patience = config.metric, config.patience
        rows = read_metrics(workdir) if self._patience else []
        found = [(int(row["step"] or 0), row.get(self._metric)) for row in rows]
        self._seen = [(step, value) for step, value in found if 0 < step <= start and value is not None]

    def see(self, step: int, found: Mapping[str, float]) -> None:
        """Takes an evaluation's values; raises UserError where the one to follow is not among them."""
        if not self._patience:
            return
        if self._metric not in found:
            raise UserError(f"config.stopping.metric={self._metric!r}: evaluations give {', '.join(found)}")
        if step and step not in dict(self._seen):
            self._seen.append((step, found[self._metric]))

    @property
    def best(self) -> int | None:
        """The step with the lowest value, the first of equals; None before there is one."""
        return min(self._seen, key=lambda each: each[1], default=(None, 0.0))[0]

    @property
    def over(self) -> bool:
        """Whether as many evaluations as the patience allows have passed since the best one."""
        later = [step for step, _ in self._seen if self.best is not None and step > self.best]
        return bool(self._patience) and len(later) >= self._patience

    def said(self) -> str:
        """Why the run stops, for people."""
        evaluations = f"{self._patience} evaluations" if self._patience > 1 else "an evaluation"
        return f"{self._metric} has not fallen for {evaluations}; the best is step {self.best}, which is kept"
