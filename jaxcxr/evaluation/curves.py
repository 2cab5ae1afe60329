"""A run's curves, drawn as SVG that takes its colours from the page around it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr import html, parsing
from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.files import inside
from jaxcxr.methods import METHODS
from jaxcxr.workdir import CONFIG, METRICS, read_metrics

_LARGEST = float(np.finfo(np.float32).max)  # that a metric can be


@dataclasses.dataclass(frozen=True)
class _Objective:
    name: str = ""


@dataclasses.dataclass(frozen=True)
class _Config:
    """What is read of a run's config; older ones have the method as `objective.name`."""

    method: str = ""
    objective: _Objective = _Objective()


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir of `jaxcxr train`: its metrics by name as (steps, values), its config and its last sheet.

    A value is NaN where the run's was not finite.
    """

    name: str
    series: Mapping[str, tuple[np.ndarray, np.ndarray]]
    config: Mapping
    sheet: Path | None

    @property
    def method(self) -> str:
        """The run's method; empty where its config does not say."""
        return self.config.get("method") or self.config.get("objective", {}).get("name", "")

    @property
    def reconstructs(self) -> bool:
        """Whether its sheets hold images of the data set, above what the networks make of them."""
        return self.method not in METHODS or METHODS[self.method].of_images


def read_run(workdir: Path) -> Run:
    """Reads a run, finished or not.

    Raises:
      UserError: `workdir` has no metrics or no config, or they are damaged.
    """
    if not all((workdir / name).is_file() for name in (METRICS, CONFIG)):
        raise UserError(f"{workdir}: is not a workdir of `jaxcxr train` with {METRICS} and {CONFIG}")
    rows = read_metrics(workdir)
    config: _Config = parsing.read_json(workdir / CONFIG, _Config)
    names = {name for row in rows for name in row if name != "step"}
    series = {}
    for name in sorted(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        values = np.array([value for _, value in points], float)  # None, of a value that is not finite, is NaN
        values[np.abs(values) > _LARGEST] = np.nan
        series[name] = (np.array([step for step, _ in points]), values)
    sheets = sorted((workdir / "samples").glob("*.png"))
    sheet = inside(workdir, f"samples/{sheets[-1].name}") if sheets else None
    return Run(workdir.name, series, dataclasses.asdict(config), sheet)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean of `values` (N,) over up to `window` of them, fewer at the ends; NaN where a value is."""
    ones, known = np.ones(min(window, len(values))), np.isfinite(values)
    sums, counts = (np.convolve(each, ones, "same") for each in (np.where(known, values, 0), known.astype(float)))
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


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


def evaluation_svgs(run: Run) -> list[str]:
    """A plot of each metric of the run's evaluations, such as `fd/inception/clean-fid`."""
    names = [name for name in run.series if name.partition("/")[0] in BETTER]
    drawn = (_svg(f"{run.name}-{name}", name, [(*run.series[name], html.ORANGE, 1.8, "")], False) for name in names)
    return [svg for svg in drawn if svg]


def _svg(name: str, label: str, lines: Sequence[tuple], from_zero: bool) -> str:
    """Lines of (steps, values, colour, width, legend) as an `<svg>` element without addresses of any kind."""
    if not any(np.isfinite(values).any() for _, values, *_ in lines):
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
    low, high = np.percentile(values[np.isfinite(values)], [0, 98])
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
