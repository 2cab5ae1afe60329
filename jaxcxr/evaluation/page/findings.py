"""What a classifier saw, and how well it sees."""

from collections.abc import Iterator, Mapping
from html import escape

from jaxcxr.evaluation.page.contents import Page
from jaxcxr.phantoms.scores import Rate, Score
from jaxcxr.phantoms.truth import GRADES


def headline(page: Page) -> Iterator[str]:
    """The share of images that show what they were asked for, of each set that a classifier has seen."""
    if not page.classified:
        return
    asked = "of the generated images show what they were asked for"
    read = f"of the {page.real_name} kept from training are read correctly, in every finding asked about"
    blocks = {
        name: [_number(asked, one.generated.rate), _number(read, one.real.rate)]
        for name, one in page.classified.items()
    }
    worst, of = min((one.worst() for one in page.classified.values()), key=lambda pair: pair[0].share)
    blind = _number(f"is the classifier’s worst rate on phantoms of new patients: {of}", worst)
    if len(blocks) == 1:
        yield f'<div class="numbers">\n{"".join([*blocks.popitem()[1], blind])}</div>\n'
        return
    for name, some in blocks.items():
        yield f'<p class="of">{escape(name)}</p>\n<div class="numbers">\n{"".join(some)}</div>\n'
    yield f'<p class="of">The classifier</p>\n<div class="numbers">\n{blind}</div>\n'


def scores(page: Page) -> Iterator[str]:
    """Tables by finding: what was asked for against what is shown, and the classifier's own."""
    if not page.classified:
        return
    yield "<section>\n<h2>Asked for against shown</h2>\n"
    yield (
        '<p class="soft">Sensitivity: of the images that were asked to show a finding on a side, how many do. '
        "Specificity: of the others, how many do not. In brackets the 95 % interval.</p>\n"
    )
    for name, one in page.classified.items():
        if len(page.classified) > 1:
            yield f"<h3>{escape(name)}</h3>\n"
        yield from _table(one.generated.classes, one.generated.grades)
    yield "</section>\n"
    seen_by = {(one.classifier.name, one.size): one.classifier for one in page.classified.values()}
    for (name, size), classifier in seen_by.items():
        own = classifier.about.tables[str(size)]
        yield (
            "<section>\n<h2>How well the classifier sees</h2>\n"
            f'<p class="soft">The classifier “{escape(name)}”, on drawn radiographs of {size}² of patients '
            "that it was not trained on.</p>\n"
        )
        yield from _table(own.classes, own.grades)
        yield "</section>\n"


def _number(what: str, rate: Rate) -> str:
    low, high = rate.interval
    counts = f"{rate.hits} of {rate.total}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return f"<p><b>{_percent(rate.share)}</b> {escape(what)} <small>{counts}</small></p>\n"


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def _table(classes: Mapping[str, Score], grades: Mapping[str, Rate]) -> Iterator[str]:
    yield '<div class="scroll"><table>\n<thead><tr><th></th>'
    yield '<th scope="col">sensitivity</th><th scope="col">specificity</th></tr></thead>\n<tbody>\n'
    for name, one in classes.items():
        cells = "".join(_cell(rate) for rate in (one.sensitivity, one.specificity))
        yield f'<tr><th scope="row">{name}</th>{cells}</tr>\n'
    for kind, rate in grades.items():
        yield f'<tr><th scope="row">{GRADES[kind][0]} of {kind}</th>{_cell(rate)}<td></td></tr>\n'
    yield "</tbody></table></div>\n"


def _cell(rate: Rate) -> str:
    if not rate.total:
        return "<td>–</td>"
    low, high = rate.interval
    said = f"{_percent(rate.share)} <small>of {rate.total} ({100 * low:.1f} to {100 * high:.1f})</small>"
    return f'<td style="background: rgba(var(--tint), {0.45 * rate.share:.2f})">{said}</td>'
