"""The tables of all numbers, each beside that of real images."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from jaxcxr import html
from jaxcxr.evaluation.asked import CONFUSION
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.page.drawings import Mark, Scale, breakable, interval, known, marks, sign, whisker
from jaxcxr.evaluation.tables import in_words

_MOST_OPEN = 20  # rows by group
_MOST_LINES = 8  # of what was left out
_SIGNS = {
    "low": ("↓", "lower is better"),
    "high": ("↑", "higher is better"),
    "real": ("≈", "near real images is better"),
}


def numbers(page: Page) -> Iterator[str]:
    """The section of numbers: all images, then groups, then what is not there and why."""
    if not (page.rows or page.left_out or any(map(_excluded, page.counts.values()))):
        return
    yield "<section>\n<h2>Numbers</h2>\n"
    if page.rows:
        yield from _explanation(page)
    whole = [row for row in page.rows if not row.group]
    parts = [row for row in page.rows if row.group and row.metric != CONFUSION]
    if whole:
        yield from _table(page, whole, "Numbers of all images", grouped=False)
    if parts:
        opened = "" if len(parts) > _MOST_OPEN else " open"
        yield f"<details{opened}>\n<summary>By group: {len(parts)} numbers</summary>\n"
        yield from _table(page, parts, "Numbers by group", grouped=True)
        yield "</details>\n"
    yield from _confusions(page)
    yield from _not_there(page)
    yield "</section>\n"


def _confusions(page: Page) -> Iterator[str]:
    """A table a set of what a classifier sees in images that were asked for one finding and not for another."""
    rows = [row for row in page.rows if row.metric == CONFUSION]
    for name, by in dict.fromkeys((row.set, row.extractor) for row in rows):
        cells = {row.group: in_words(row.value) for row in rows if (row.set, row.extractor) == (name, by)}
        names = list(dict.fromkeys(group.partition(",seen=")[0].removeprefix("asked=") for group in cells))
        yield f"<h3>Asked for and seen: {breakable(name)} <small>{escape(by)}</small></h3>\n"
        yield (
            '<p class="soft">A row is of the images that were asked for its finding, and not for that of the column; '
            "a cell is the share in which that is seen. On the diagonal are the findings that were asked for.</p>\n"
        )
        lines = [[one, *(cells.get(f"asked={one},seen={other}", "–") for other in names)] for one in names]
        yield html.table([["asked for", *names], *lines])


def better(metric: str) -> str:
    """A sign that says where good values of a metric lie; empty where nobody knows."""
    where = BETTER.get(metric.partition("/")[0])
    if where is None:
        return ""
    shown, meaning = _SIGNS[where]
    return f' <abbr title="{meaning}">{shown}</abbr>'


def _explanation(page: Page) -> Iterator[str]:
    real = escape(page.real_name)
    yield (
        f'<p class="soft">In small print is the 95 % interval of a number. Beside it stands what {real} of other '
        "patients score in the place of the generated images, at the same n: a perfect model would score that. "
        "↓ lower is better, ↑ higher is better, ≈ near that number is better.</p>\n"
        '<p class="soft">In the drawings the dot is the number with its interval, '
        f"the line and the band are those of {real}; each metric has its own scale.</p>\n"
    )


def _table(page: Page, rows: Sequence[Row], label: str, grouped: bool) -> Iterator[str]:
    of, rows = marks(page), _ordered(rows)
    scales = {kind: Scale.around([row for row in rows if _kind(row) == kind]) for kind in {_kind(row) for row in rows}}
    heads = [*(["group"] if grouped else []), "set", "metric", "value", page.real_name]
    tall = " tall" if grouped else ""
    yield f'<div class="scroll{tall}" role="region" aria-label="{label}" tabindex="0"><table class="rows">\n<thead><tr>'
    for head in heads:
        numeric = ' class="number"' if head in heads[-2:] else ""
        yield f'<th scope="col"{numeric}>{escape(head)}</th>'
    yield '<td class="drawing"></td><th scope="col">seen by</th><th scope="col" class="number">n</th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        group = f'<th scope="row">{breakable(row.group)}</th>' if grouped else ""
        name = f"{sign(of[row.set])} {breakable(row.set)}" if len(of) > 1 else breakable(row.set)
        name = f'<td class="name">{name}</td>' if grouped else f'<th scope="row">{name}</th>'
        yield f'<tr>{group}{name}<td class="metric">{breakable(row.metric)}{better(row.metric)}</td>'
        yield f"{_cells(row, scales[_kind(row)], of[row.set])}</tr>\n"
    yield "</tbody></table></div>\n"


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """By group and then by metric, so that the sets stand one below the other."""
    groups, kinds = (list(dict.fromkeys(keys)) for keys in ((row.group for row in rows), map(_kind, rows)))
    return sorted(rows, key=lambda row: (groups.index(row.group), kinds.index(_kind(row))))


def _kind(row: Row) -> tuple[str, str]:
    return row.metric, row.extractor


def _cells(row: Row, scale: Scale, mark: Mark) -> str:
    value = _number(row.value, row.low, row.high)
    floor = _number(row.floor, row.floor_low, row.floor_high)
    drawn = f'<td class="drawing">{whisker(row, scale, mark)}</td>'
    seen_by = f'<td class="name">{breakable(row.extractor or "pixels")}</td>'
    return f'{value}{floor}{drawn}{seen_by}<td class="number" data-value="{row.n}">{row.n:,}</td>'


def _number(value: float | None, low: float | None, high: float | None) -> str:
    """A cell; `data-value` is what it is sorted by, empty where there is no number."""
    if not known(value):
        return '<td class="number" data-value="">–<small></small></td>'
    ends = interval(low, high)
    return f'<td class="number" data-value="{value!r}">{in_words(value)} <small>{ends}</small></td>'


def _excluded(counts: Mapping[str, int]) -> list[str]:
    return [f"{count} {why}" for why, count in counts.items() if why != "images" and count]


def _not_there(page: Page) -> Iterator[str]:
    counted = [
        f"{name}: {', '.join(lines)}; {counts.get('images', 0)} images compared"
        for name, counts in page.counts.items()
        if (lines := _excluded(counts))
    ]
    if counted:
        yield f"<h3>Images left out, or equal to real ones</h3>\n{_list(counted)}"
    if page.left_out:
        kept = "" if len(page.left_out) > _MOST_LINES else " open"
        yield f"<details{kept}>\n<summary>Left out: {len(page.left_out)}</summary>\n{_list(page.left_out)}</details>\n"


def _list(lines: Sequence[str]) -> str:
    return '<ul class="soft">' + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>\n"
