"""Quality and diversity of all images: precision against recall, density against coverage, and how alike images are."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from jaxcxr import html
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.page.bars import REAL_SIGN, chart
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.page.drawings import Mark, known, legend, marks

_PAIRS = (("precision", "recall"), ("density", "coverage"))
_DIVERSITY = ("vendi", "ms_ssim_within", "ssim_within")

Point = tuple[Row, Row]
"""A set's numbers upwards and across."""


def plots(page: Page) -> Iterator[str]:
    """Two sections, each there if its numbers are."""
    yield from _against_each_other(page)
    yield from _diversity(page)


def _against_each_other(page: Page) -> Iterator[str]:
    drawn: dict[str, list[str]] = {}
    for extractor in dict.fromkeys(row.extractor for row in page.rows):
        for up, across in _PAIRS:
            if points := _points(page.rows, extractor, up, across):
                drawn.setdefault(extractor, []).append(_plot(extractor, points, marks(page)))
    if not drawn:
        return
    yield "<section>\n<h2>Quality against diversity</h2>\n"
    yield (
        '<p class="soft">Precision and density say how much of the generated images lies among real ones, recall and '
        "coverage how much of the real ones is reached. A good model is where the real images are.</p>\n"
    )
    shown = [row.set for row in page.rows if row.metric in dict(_PAIRS)]
    yield legend(shown, marks(page), page.real_name, "✕")
    for extractor, some in drawn.items():
        if len(drawn) > 1:
            yield f"<h3>{escape(extractor)}</h3>\n"
        yield '<div class="curves">' + "".join(f'<div class="square">{svg}</div>' for svg in some) + "</div>\n"
    yield "</section>\n"


def _points(rows: Sequence[Row], extractor: str, up: str, across: str) -> list[Point]:
    whole = {(row.set, row.metric): row for row in rows if row.extractor == extractor and not row.group}
    sets = dict.fromkeys(name for name, _ in whole)
    points = [(whole[name, up], whole[name, across]) for name in sets if {(name, up), (name, across)} <= whole.keys()]
    return [point for point in points if all(known(row.value) for row in point)]


def _plot(extractor: str, points: Sequence[Point], of: Mapping[str, Mark]) -> str:
    up, across = (row.metric for row in points[0])

    def paint(axes: Any) -> None:
        for first, second in dict.fromkeys(points):
            if known(first.floor) and known(second.floor):
                ends = [(row.floor_low, row.floor, row.floor_high) for row in (second, first)]
                _cross(axes, ends, html.INK, "x", 7)
        for first, second in points:
            mark = of[first.set]
            _cross(axes, [(row.low, row.value, row.high) for row in (second, first)], mark.colour, mark.marker, 6)
        axes.set_xlim(0, max(1.03, axes.get_xlim()[1]))  # density alone may be more than 1
        axes.set_ylim(0, max(1.03, axes.get_ylim()[1]))

    return html.plot(f"{extractor}-{up}", up, across, paint, size=(4.2, 3.4))


def _cross(axes: Any, ends: Sequence[tuple], colour: str, marker: str, size: float) -> None:
    """A point with its intervals across and upwards, each (low, value, high)."""
    errors: list[Any] = [
        [[max(0.0, value - low)], [max(0.0, high - value)]] if known(low) and known(high) else None
        for low, value, high in ends
    ]
    (_, x, _), (_, y, _) = ends
    axes.errorbar(
        [x], [y], xerr=errors[0], yerr=errors[1], color=colour, marker=marker, markersize=size, elinewidth=1.2, ls=""
    )


def _diversity(page: Page) -> Iterator[str]:
    rows = [row for row in page.rows if row.metric in _DIVERSITY and not row.group]
    if not rows:
        return
    yield "<section>\n<h2>Diversity</h2>\n"
    yield (
        '<p class="soft">The Vendi score counts how many different images a set has in effect. The similarity within '
        "prompts is that of images of one prompt: less is more diverse.</p>\n"
    )
    yield legend((row.set for row in rows), marks(page), page.real_name, REAL_SIGN)
    kinds = dict.fromkeys((row.metric, row.extractor) for row in rows)
    charts = (chart(page, kind[0], [row for row in rows if (row.metric, row.extractor) == kind]) for kind in kinds)
    yield f'<div class="curves">\n{"".join(charts)}</div>\n</section>\n'
