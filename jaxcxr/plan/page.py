"""The pages of sweeps and of scaling, and their tables."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxcxr import html
from jaxcxr.plan.report import gib
from jaxcxr.plan.roofline import ASSUMPTIONS
from jaxcxr.plan.scaling import Size
from jaxcxr.plan.sweep import Point
from jaxcxr.plan.targets import Target

_HEADS = ("config", "memory a chip", "images/s", "of a chip", "MFU", "")


def label(point: Point) -> str:
    """A point's config in a line."""
    config = point.config
    mesh = f" {config.mesh.fsdp}x{config.mesh.tensor}" if config.sharding != "replicated" else ""
    return (
        f"batch {config.batch_size}, {config.sharding}{mesh}, remat {config.remat}, accumulation {config.accumulation}"
    )


def sweep_rows(points: Sequence[Point], best: Point | None) -> list[tuple[str, ...]]:
    """A row a point, under their heads."""
    rows: list[tuple[str, ...]] = [_HEADS]
    for point in points:
        if point.fits:
            assert point.found is not None
            total = gib(sum(point.found["memory"].values()))
            rows.append((label(point), total, *_speed(point.estimate), "best" if point is best else ""))
        elif point.found:
            rows.append((label(point), f"{gib(point.found['over'])} too much", "", "", "", "does not fit"))
        else:
            rows.append((label(point), "", "", "", "", point.why))
    return rows


def scaling_rows(sizes: Sequence[Size]) -> list[tuple[str, ...]]:
    """A row a size, under their heads."""
    rows: list[tuple[str, ...]] = [("target", "images a step", "memory a chip", "images/s", "of a chip", "MFU", "")]
    for size in sizes:
        if size.found is None:
            rows.append((size.target.name, "", "", "", "", "", size.why))
            continue
        start = (size.target.name, str(size.found["batch_size"]))
        if size.found["over"]:
            rows.append((*start, f"{gib(size.found['over'])} too much", "", "", "", "does not fit"))
            continue
        note = "interpolated" if size.interpolated else ""
        rows.append((*start, gib(sum(size.found["memory"].values())), *_speed(size.estimate), note))
    return rows


def _speed(guess: Any) -> tuple[str, str, str]:
    return f"{guess.rate:.4g}", f"{guess.rate / guess.chips:.3g}", f"{100 * guess.mfu:.0f} %"


def sweep_page(points: Sequence[Point], best: Point | None, target: Target, settings: str) -> str:
    """The page of a sweep."""
    fitting = [point for point in points if point.fits]
    told = f"Best that fits: {label(best)}, {best.estimate.rate:.4g} images/s expected." if best else "None fits."

    def paint(axes: Any) -> None:
        for remat, colour in (("none", html.BLUE), ("attention", html.GREEN), ("blocks", html.ORANGE)):
            alike = [point for point in fitting if point.config.remat == remat]
            if alike:
                memory = [sum(point.found["memory"].values()) / 2**30 for point in alike if point.found]
                rates = [point.estimate.rate for point in alike]
                axes.scatter(memory, rates, color=colour, s=18, label=f"remat {remat}")
        if target.platform != "cpu":
            axes.axvline(target.chip.memory / 2**30, color=html.FAINT)
        axes.set_ylim(bottom=0)

    plot = html.plot("sweep", "images a second, expected", "GiB a chip", paint) if fitting else ""
    body = [f"<header><h1>Plans for {escape(target.name)}</h1>\n<p>{escape(told)}</p></header>\n"]
    body.append(f'<div class="curves"><div>{plot}</div></div>\n' if plot else "")
    body.append(html.table(sweep_rows(points, best)))
    return html.document(f"Plans for {target.name}", "".join([*body, _end(settings)]))


def scaling_page(scaled: Mapping[str, Sequence[Size]], target: Target, settings: str) -> str:
    """The page of a scaling report."""
    title = f"Scaling on {target.chip.kind}"
    body = [f"<header><h1>{escape(title)}</h1>\n<p>Planned, not run: see what is assumed.</p></header>\n"]
    heads = {"weak": "Weak: the same images a chip", "strong": "Strong: the same images a step"}
    for kind, sizes in scaled.items():
        known = [size for size in sizes if size.found and not size.found["over"]]
        body.append(f"<section><h2>{heads[kind]}</h2>\n")
        if known:
            plots = [_rates(kind, known), _parts(kind, known)]
            body.append('<div class="curves">' + "".join(f"<div>{plot}</div>" for plot in plots) + "</div>\n")
        if any(size.interpolated for size in sizes):
            body.append(
                '<p class="soft">Rows marked so, hollow in the plot, were not compiled: their numbers lie between those'
                " of their neighbours, as powers of the number of chips.</p>\n"
            )
        body.append(html.table(scaling_rows(sizes)) + "</section>\n")
    return html.document(title, "".join([*body, _end(settings)]))


def _rates(kind: str, sizes: Sequence[Size]) -> str:
    def paint(axes: Any) -> None:
        chips = [size.estimate.chips for size in sizes]
        images = [size.found["batch_size"] for size in sizes if size.found]
        slow, fast = ([n / size.estimate.band[end] for n, size in zip(images, sizes, strict=True)] for end in (1, 0))
        axes.fill_between(chips, slow, fast, color=html.BLUE, alpha=0.15, linewidth=0)
        axes.plot(chips, [size.estimate.rate for size in sizes], color=html.BLUE, linewidth=1.8, label="expected")
        for size in sizes:
            filled = "none" if size.interpolated else html.BLUE
            axes.plot(size.estimate.chips, size.estimate.rate, "o", markersize=4, color=html.BLUE, mfc=filled)
        first = sizes[0].estimate
        linear = [first.rate * n / first.chips for n in chips]
        axes.plot(chips, linear, color=html.FAINT, linewidth=1, label="linear")
        _chips(axes, chips)
        axes.set_yscale("log")

    return html.plot(f"{kind}-rate", "images a second", "chips", paint)


def _parts(kind: str, sizes: Sequence[Size]) -> str:
    def paint(axes: Any) -> None:
        chips = [size.estimate.chips for size in sizes]
        for name, colour in (("compute", html.BLUE), ("communication", html.ORANGE), ("state", html.GREEN)):
            times = [1000 * getattr(size.estimate, name) for size in sizes]
            axes.plot(chips, times, color=colour, linewidth=1.8, marker="o", markersize=3, label=name)
        _chips(axes, chips)
        axes.set_ylim(bottom=0)

    return html.plot(f"{kind}-parts", "ideal milliseconds of a step", "chips", paint)


def _chips(axes: Any, chips: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(chips, [str(n) for n in chips])
    axes.minorticks_off()


def _end(settings: str) -> str:
    assumed = "".join(f"<li>{escape(line)}</li>" for line in ASSUMPTIONS)
    text = f"<h3>Config</h3>\n<pre>{escape(settings)}</pre>\n"
    return f"<h2>Assumed</h2>\n<ul>{assumed}</ul>\n<details>\n<summary>Settings</summary>\n{text}</details>\n"
