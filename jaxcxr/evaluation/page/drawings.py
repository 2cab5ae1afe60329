"""Numbers drawn beside those of real images: small SVG pictures whose width is that of their place."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple, TypeGuard

from jaxcxr import html
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.tables import in_words


class Mark(NamedTuple):
    """How a set is told from others.

    Attributes:
      colour: one of `jaxcxr.html`, to plot in.
      css: the same in CSS.
      sign: a character.
      marker: the same shape in matplotlib.
    """

    colour: str
    css: str
    sign: str
    marker: str


_MARKS = [
    Mark(colour, html.VARIABLES[colour], sign, marker)
    for colour, (sign, marker) in zip(
        html.SERIES, (("●", "o"), ("■", "s"), ("▲", "^"), ("▼", "v"), ("◆", "D"), ("✚", "P")), strict=True
    )
]


def marks(page: Page) -> dict[str, Mark]:
    """A mark a set, in the order of the sets; from the seventh on they repeat."""
    names = dict.fromkeys([*page.generated, *(row.set for row in page.rows)])
    return {name: _MARKS[number % len(_MARKS)] for number, name in enumerate(names)}


def sign(mark: Mark) -> str:
    """The set's sign in its colour; its name stands beside it."""
    return f'<i class="sign" aria-hidden="true" style="color: {mark.css}">{mark.sign}</i>'


def legend(names: Iterable[str], of: dict[str, Mark], real: str, real_sign: str) -> str:
    """Which mark is which set's, and that of real images, called `real`."""
    sets = "".join(f"<span>{sign(of[name])} {breakable(name)}</span>" for name in dict.fromkeys(names))
    return f'<p class="legend">{sets}<span><i class="sign">{real_sign}</i> {escape(real)}</span></p>\n'


def breakable(name: str) -> str:
    """A name as HTML that may go on in the next line after any of its marks."""
    return re.sub(r"([_./=-]+)(?=.)", r"\1<wbr>", escape(name))


def known(value: float | None) -> TypeGuard[float]:
    """Whether a number is there and finite."""
    return value is not None and math.isfinite(value)


def interval(low: float | None, high: float | None) -> str:
    """An interval in words; empty where it is not known."""
    return f"{in_words(low)} to {in_words(high)}" if known(low) and known(high) else ""


def said(row: Row, real: str) -> str:
    """A row in words."""
    floor = f"; {real} {in_words(row.floor, row.floor_low, row.floor_high)}" if known(row.floor) else ""
    return f"{row.set}: {in_words(row.value, row.low, row.high)}{floor}; n = {row.n}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """The numbers from the left edge of a drawing to its right one."""

    low: float
    high: float

    @classmethod
    def around(cls, rows: Sequence[Row]) -> "Scale":
        """All values, floors and intervals of rows, with space beside them."""
        numbers = _numbers(rows)
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        space = 0.06 * (high - low) or max(abs(high), 1.0)
        return cls(low - space, high + space)

    @classmethod
    def from_zero(cls, rows: Sequence[Row], least: float = 0.0) -> "Scale":
        """The same from zero, to `least` or more."""
        numbers = _numbers(rows)
        low, high = min(0.0, *numbers, 0.0), max(least, *numbers, 0.0)
        return cls(low, high) if high > low else cls(0.0, 1.0)

    def at(self, value: float) -> float:
        """Where a number lies, in percent of the width."""
        return 100 * (value - self.low) / (self.high - self.low)


def _numbers(rows: Sequence[Row]) -> list[float]:
    values = [row.value for row in rows] + [row.floor for row in rows]
    values += [end for row in rows if known(row.value) for end in (row.low, row.high)]
    values += [end for row in rows if known(row.floor) for end in (row.floor_low, row.floor_high)]
    return [value for value in values if known(value)]


def whisker(row: Row, scale: Scale, mark: Mark) -> str:
    """A dot with its interval, on a band that is the interval of real images."""
    drawn = _floor(row, scale) + _whisker(row, scale, "stroke: var(--of)")
    if known(row.value):
        drawn += f'<circle class="dot" cx="{scale.at(row.value):.2f}%" cy="50%" r="4"/>'
    return f'<svg class="whisker" aria-hidden="true" style="--of: {mark.css}">{drawn}</svg>'


def bar(row: Row, scale: Scale, mark: Mark) -> str:
    """A bar with its interval, and a line at the number of real images with its band."""
    drawn = ""
    if known(row.value):
        start, end = sorted((scale.at(0.0), scale.at(row.value)))
        drawn = f'<rect class="fill" x="{start:.2f}%" width="{end - start:.2f}%" y="15%" height="70%"/>'
    drawn = f'<rect class="track" width="100%" y="15%" height="70%"/>{drawn}'
    drawn += _floor(row, scale) + _whisker(row, scale, "stroke: var(--ink)")
    return f'<svg class="bar" aria-hidden="true" style="--of: {mark.css}">{drawn}</svg>'


def _floor(row: Row, scale: Scale) -> str:
    if not known(row.floor):
        return ""
    drawn, place = "", scale.at(row.floor)
    if known(row.floor_low) and known(row.floor_high):
        low, high = scale.at(row.floor_low), scale.at(row.floor_high)
        drawn = f'<rect class="band" x="{low:.2f}%" width="{max(0.0, high - low):.2f}%" height="100%"/>'
    return f'{drawn}<line class="real" x1="{place:.2f}%" x2="{place:.2f}%" y1="0" y2="100%"/>'


def _whisker(row: Row, scale: Scale, style: str) -> str:
    if not (known(row.value) and known(row.low) and known(row.high)):
        return ""
    low, high = scale.at(row.low), scale.at(row.high)
    return f'<line class="interval" style="{style}" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
