"""Early stopping by a value of the evaluations."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.workdir import read_metrics


class Early:
    """Watches a value that should fall, or rise where more is better: which step was best, and whether to stop.

    Both depend on the metrics on record alone, so that a run which is resumed stops at the same step. The state before
    the first step does not count: there is no checkpoint of it.

    Attributes:
      best: the step with the best value, the first of equals; None before there is one.
      over: whether as many evaluations as the patience allows have passed since the best one.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start: int):
        """Reads what is on record up to `start`; `config` is a run's `stopping`, off with a patience of 0."""
        self.best: int | None = None
        self.over = False
        self._metric, self._patience = config.metric, config.patience
        better = BETTER.get(config.metric.partition("/")[0], "low")
        if self._patience and better == "real":
            raise UserError(
                f"config.stopping.metric={config.metric!r}: is best near real images', neither low nor high;"
                " watch another, such as fd or coverage"
            )
        self._rises = better == "high"
        self._seen: dict[int, float] = {}
        self._given: set[str] = set()
        for row in read_metrics(workdir) if self._patience else ():
            step, value = int(row["step"] or 0), row.get(self._metric)
            if step <= start and value is not None:
                self._add(step, value)

    def see(self, step: int, found: Any) -> None:
        """Takes what an evaluation has found: values by name, or something else that has none."""
        if not self._patience or not isinstance(found, Mapping):
            return
        self._given |= found.keys()
        if self._metric in found:
            self._add(step, found[self._metric])

    def check(self) -> None:
        """Raises UserError where the evaluations that were seen do not give the value to watch."""
        if self._given and self._metric not in self._given:
            raise UserError(
                f"config.stopping.metric={self._metric!r}: evaluations give {', '.join(sorted(self._given))}"
            )

    def _add(self, step: int, value: float) -> None:
        if step == 0 or step in self._seen or math.isnan(value):  # which is on record as None
            return
        self._seen[step] = -value if self._rises else value
        self.best = min(self._seen, key=self._seen.__getitem__)
        self.over = sum(each > self.best for each in self._seen) >= self._patience

    def said(self) -> str:
        """Why the run stops, for people."""
        evaluations = f"{self._patience} evaluations" if self._patience > 1 else "an evaluation"
        moved = "risen" if self._rises else "fallen"
        return f"{self._metric} has not {moved} for {evaluations}; the best is step {self.best}, which is kept"
