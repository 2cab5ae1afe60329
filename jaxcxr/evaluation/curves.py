"""A run's curves, drawn as SVG that takes its colours from the page around it."""

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.errors import UserError

_VARIABLES = {"#010101": "var(--ink)", "#020202": "var(--faint)", "#030303": "var(--blue)", "#040404": "var(--orange)"}
_INK, _FAINT, _BLUE, _ORANGE = _VARIABLES


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
        lines += [(steps, values, _FAINT, 0.7, ""), (steps, smoothed, _BLUE, 1.8, "training, smoothed")]
    if "validation_loss" in run.series:
        lines.append((*run.series["validation_loss"], _ORANGE, 1.8, "validation"))
    return _svg(f"{run.name}-loss", "loss", lines, from_zero=False)


def speed_svg(run: Run) -> str:
    """Images a second; empty where the run has none."""
    lines = [(*run.series["images_per_second"], _BLUE, 1.4, "")] if "images_per_second" in run.series else []
    return _svg(f"{run.name}-speed", "images a second", lines, from_zero=True)


def _svg(name: str, label: str, lines: Sequence[tuple], from_zero: bool) -> str:
    """Lines of (steps, values, colour, width, legend) as an `<svg>` element without addresses of any kind."""
    if not any(len(steps) for steps, *_ in lines):
        return ""
    # The object interface: pyplot would choose a window system and keep the figure.
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for steps, values, colour, width, legend in lines:
            dots = "o" if len(steps) < 20 else None
            axes.plot(steps, values, color=colour, linewidth=width, label=legend or "_", marker=dots, markersize=3)
        axes.set_title(label, loc="left", fontsize=10, color=_INK)
        axes.set_xlabel("step", color=_INK)
        axes.tick_params(color=_FAINT, labelcolor=_INK)
        axes.grid(color=_FAINT, linewidth=0.5, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FAINT)
        _limit(axes, lines, from_zero)
        if any(legend for *_, legend in lines):
            axes.legend(frameon=False, labelcolor=_INK)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(out.getvalue(), f"{label} by step")


def _limit(axes, lines: Sequence[tuple], from_zero: bool) -> None:
    """Keeps the first steps' outliers, which the raw loss has, from flattening the rest."""
    if from_zero:
        axes.set_ylim(bottom=0)
        return
    values = np.concatenate([values for _, values, *_ in lines])
    low, high = np.nanpercentile(values, [0, 98])
    if np.isfinite(high) and high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def _inline(text: str, label: str) -> str:
    """matplotlib's SVG file as an element of an HTML page, in the page's colours and font."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    # Its style block would hold for the whole page, and its groups' ids would repeat from curve to curve.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font(-family)?:[^;\"]*sans-serif[^;\"]*", "font: 10px var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
