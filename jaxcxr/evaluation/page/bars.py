"""Bars by finding and by what else the images are split by, with those of real images."""

from collections.abc import Iterator, Sequence
from html import escape

from jaxcxr.evaluation.asked import CONFUSION
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.page.drawings import Mark, Scale, bar, breakable, known, legend, marks, said
from jaxcxr.evaluation.page.numbers import better
from jaxcxr.evaluation.tables import in_words

_SHARES = {"precision", "recall", "coverage", "authenticity", "sensitivity", "specificity", "grade"}
_SHARES |= {"shows_what_was_asked", "ms_ssim_within", "ssim_within"}
_HEADS = {"finding": "By finding, as a classifier sees it"}
REAL_SIGN = "┃"


def by_group(page: Page) -> Iterator[str]:
    """A section for each column that the numbers are split by: a chart a metric."""
    columns = dict.fromkeys(row.group.partition("=")[0] for row in page.rows if row.group and row.metric != CONFUSION)
    for column in sorted(columns, key=lambda name: name != "finding"):
        rows = [row for row in page.rows if row.group.partition("=")[0] == column]
        yield f"<section>\n<h2>{escape(_HEADS.get(column, f'By {column}'))}</h2>\n"
        yield legend((row.set for row in rows), marks(page), page.real_name, REAL_SIGN)
        of = list(dict.fromkeys((row.metric, row.extractor) for row in rows))
        shown = [
            chart(page, metric, [row for row in rows if (row.metric, row.extractor) == (metric, extractor)])
            for metric, extractor in of
        ]
        first = len(shown) if column == "finding" else 2  # the rest is a click away
        yield f'<div class="curves">\n{"".join(shown[:first])}</div>\n'
        if shown[first:]:
            yield f"<details>\n<summary>{len(shown) - first} other metrics by {escape(column)}</summary>\n"
            yield f'<div class="curves">\n{"".join(shown[first:])}</div>\n</details>\n'
        yield "</section>\n"


def chart(page: Page, title: str, rows: Sequence[Row]) -> str:
    """Bars of one metric: those of a group under its name, or of a set under the set's where the rows have no group."""
    metric, of = rows[0].metric, marks(page)
    scale = Scale.from_zero(rows, 1.0 if metric in _SHARES else 0.0)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group.partition("=")[2] or row.set, []).append(row)
    drawn = "".join(
        f'<li><span class="name">{breakable(name)}</span><div>{_bars(members, scale, of, page.real_name)}</div></li>\n'
        for name, members in groups.items()
        if any(known(row.value) for row in members)
    )
    seen_by = f" <small>{escape(rows[0].extractor or 'pixels')}</small>"
    ends = f"<span>{in_words(scale.low)}</span><span>{in_words(scale.high)}</span>"
    axis = (
        f'<li class="axis" aria-hidden="true"><span></span><div class="one"><span class="ends">{ends}</span></div></li>'
    )
    return f'<div class="bars"><h3>{escape(title)}{better(metric)}{seen_by}</h3>\n<ul>\n{drawn}{axis}</ul></div>\n'


def _bars(rows: Sequence[Row], scale: Scale, of: dict[str, Mark], real: str) -> str:
    return "".join(
        f'<div class="one" title="{escape(said(row, real))}">{bar(row, scale, of[row.set])}'
        f'<span class="number"><span class="unseen">{escape(row.set)}: </span>{in_words(row.value)}</span></div>'
        for row in rows
    )
