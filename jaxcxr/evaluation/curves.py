"""A run's curves, drawn as SVG that takes its colours from the page around it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr import html
from jaxcxr.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir of `jaxcxr train`: its metrics by name as (steps, values), its config and its last sheet."""

    name: str
    series: Mapping[str, tuple[np.ndarray, np.ndarray]]
    config: Mapping
    sheet: Path | None

    @property
    def reconstructs(self) -> bool:
        """Whether its sheets hold images of the data set above their reconstructions."""
        return self.config.get("objective", {}).get("name") != "diffusion"


def read_run(workdir: Path) -> Run:
    """Reads a run, going on or finished.

    Raises:
      UserError: `workdir` has no metrics or no config, or they are damaged.
    """
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        # A run that goes on may be writing its last line.
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir}: is not a workdir of `jaxcxr train` with metrics.jsonl and config.json") from error
    names = {name for row in rows for name in row if name != "step"}
    series = {}
    for name in sorted(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        series[name] = (np.array([step for step, _ in points]), np.array([value for _, value in points]))
    sheets = sorted((workdir / "samples").glob("*.png"))
    return Run(workdir.name, series, config, sheets[-1] if sheets else None)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean of `values` (N,) over up to `window` of them, fewer at the ends."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def loss_svg(run: Run) -> str:
    """Training loss, faint and smoothed, with the validation loss; empty where the run has neither."""
    lines = []
    if "loss" in run.series:
        steps, values = run.series["loss"]
        smoothed = smooth(values, max(1, len(values) // 25))
        lines += [(steps, values, html.FAINT, 0.7, ""), (steps, smoothed, html.BLUE, 1.8, "training, smoothed")]
    if "validation_loss" in run.series:
        lines.append((*run.series["validation_loss"], html.ORANGE, 1.8, "validation"))
    return _svg(f"{run.name}-loss", "loss", lines, from_zero=False)


def speed_svg(run: Run) -> str:
    """Images a second; empty where the run has none."""
    lines = [(*run.series["images_per_second"], html.BLUE, 1.4, "")] if "images_per_second" in run.series else []
    return _svg(f"{run.name}-speed", "images a second", lines, from_zero=True)


def _svg(name: str, label: str, lines: Sequence[tuple], from_zero: bool) -> str:
    """Lines of (steps, values, colour, width, legend) as an `<svg>` element without addresses of any kind."""
    if not any(len(steps) for steps, *_ in lines):
        return ""

    def paint(axes: Any) -> None:
        for steps, values, colour, width, legend in lines:
            dots = "o" if len(steps) < 20 else None
            axes.plot(steps, values, color=colour, linewidth=width, label=legend or "_", marker=dots, markersize=3)
        _limit(axes, lines, from_zero)

    return html.plot(name, label, "step", paint)


def _limit(axes, lines: Sequence[tuple], from_zero: bool) -> None:
    """Keeps the first steps' outliers, which the raw loss has, from flattening the rest."""
    if from_zero:
        axes.set_ylim(bottom=0)
        return
    values = np.concatenate([values for _, values, *_ in lines])
    low, high = np.nanpercentile(values, [0, 98])
    if np.isfinite(high) and high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
