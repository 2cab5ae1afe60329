"""The page to look at: one HTML file that needs nothing else, on paper-white or in the dark, on a desk or a phone."""

import base64
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from jaxcxr import html
from jaxcxr.data.images import encode_png, open_picture
from jaxcxr.errors import UserError
from jaxcxr.evaluation.curves import Run, loss_svg, speed_svg
from jaxcxr.evaluation.findings import Report, in_words
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.classifier import Classifier
from jaxcxr.phantoms.scores import Rate, Score
from jaxcxr.phantoms.truth import GRADES

_SHEET_SIDE, _SHEET_PIXELS = 1024, 2**27
_MOST_GROUPS = 48


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a classifier sees in the generated and in the real images, and the size at which it reads them."""

    classifier: Classifier
    size: int
    generated: Report
    real: Report

    def worst(self) -> tuple[Rate, str]:
        """The classifier's lowest sensitivity or specificity in its own table, and what it is of."""
        classes = self.classifier.about.tables[str(self.size)].classes
        rates = [(one.sensitivity, f"sensitivity to {name}") for name, one in classes.items()]
        rates += [(one.specificity, f"specificity of {name}") for name, one in classes.items()]
        return min((pair for pair in rates if pair[0].total), key=lambda pair: pair[0].share)


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that the page shows; what is not here cannot get onto it.

    Without `classified` nothing is said of findings. `settings` are texts by title, for the end of the page.
    """

    title: str
    generated: Sequence[Picture]
    real: Sequence[Picture]
    real_name: str
    classified: Classified | None
    runs: Sequence[Run]
    settings: Mapping[str, str]
    reconstructions: bool = False
    """Whether sheets that hold images of the data set may be shown."""
    shown: int = 48
    """Generated images shown, in equal parts of everything that was asked for."""


def render(page: Page) -> str:
    """The page as HTML: UTF-8, no scripts, no addresses, every text escaped."""
    body = "".join([*_head(page), *_samples(page), *_tables(page), *_runs(page), *_settings(page)])
    return html.document(page.title, body)


def _head(page: Page) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(page.title)}</h1>\n"
    beside = f", beside {page.real_name} for comparison" if page.real else ""
    yield f"<p>Chest radiographs drawn by a latent diffusion model from the words of a report{escape(beside)}.</p>\n"
    yield '<span class="notice">Synthetic images, not for diagnosis</span>\n'
    if page.real and not page.classified:
        yield f'<span class="notice">The {escape(page.real_name)} on this page are of patients</span>\n'
    if page.classified:
        classified = page.classified
        yield '<div class="numbers">\n'
        yield _number("of the generated images show what they were asked for", classified.generated.rate)
        yield _number(
            f"of the {page.real_name} kept from training are read correctly, in every finding asked about",
            classified.real.rate,
        )
        worst, of = classified.worst()
        yield _number(f"is the classifier’s worst rate on phantoms of new patients: {of}", worst)
        yield "</div>\n"
    yield "</header>\n"


def _number(what: str, rate: Rate) -> str:
    low, high = rate.interval
    counts = f"{rate.hits} of {rate.total}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return f"<p><b>{_percent(rate.share)}</b> {escape(what)} <small>{counts}</small></p>\n"


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def _samples(page: Page) -> Iterator[str]:
    yield "<section>\n<h2>What was asked for, and what came</h2>\n"
    if not page.classified:
        yield from _figures(page.generated[: page.shown])
        yield from _beside(page.real[:24], page.real_name)
        yield "</section>\n"
        return
    yield (
        '<p class="soft">Drawn in the order of the prompts, none chosen by hand. As on any radiograph, '
        "the patient’s left is on the right of the picture.</p>\n"
    )
    generated, real = page.classified.generated, page.classified.real
    groups: dict[bytes, list[int]] = {}
    for index, (asked, about) in enumerate(zip(generated.asked, generated.about, strict=True)):
        groups.setdefault(asked.tobytes() + about.tobytes(), []).append(index)
    each = max(1, page.shown // len(groups))
    for members in list(groups.values())[:_MOST_GROUPS]:
        asked, about = generated.asked[members[0]], generated.about[members[0]]
        right = int(generated.right[members].sum())
        yield f"<h3>{in_words(asked, about).capitalize()} <small>{right} of {len(members)} show it</small></h3>\n"
        yield from _figures([page.generated[index] for index in members[:each]], generated, members)
        alike = np.flatnonzero(((real.asked == asked) | ~about).all(axis=1))[: max(1, each // 2)]
        yield from _beside([page.real[index] for index in alike], page.real_name)
    yield "</section>\n"


def _beside(pictures: Sequence[Picture], name: str) -> Iterator[str]:
    if pictures:
        yield f'<div class="beside"><p>For comparison, from the {escape(name)}:</p>\n'
        yield from _figures(pictures)
        yield "</div>\n"


def _figures(pictures: Sequence[Picture], seen: Report | None = None, members: Sequence[int] = ()) -> Iterator[str]:
    """Pictures with their texts, and with what the classifier saw where that is given."""
    yield '<div class="grid">\n'
    for number, picture in enumerate(pictures):
        kind = verdict = ""
        if seen:
            index = members[number]
            about, right = seen.about[index], seen.right[index]
            asked, saw = (in_words(classes[index] & about, about) for classes in (seen.asked, seen.seen))
            kind = ' class="right"' if right else ' class="wrong"'
            verdict = f"<b>{'✓' if right else '✗ wrong:'} asked {asked}, saw {saw}</b>"
        image = _image(encode_png(picture.pixels[..., None]), "chest radiograph")
        caption = f"<figcaption>{verdict}{escape(picture.text)}</figcaption>" if verdict or picture.text else ""
        yield f"<figure{kind}>{image}{caption}</figure>\n"
    yield "</div>\n"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _tables(page: Page) -> Iterator[str]:
    if not page.classified:
        return
    classifier, size = page.classified.classifier, page.classified.size
    generated, own = page.classified.generated, classifier.about.tables[str(size)]
    yield "<section>\n<h2>Asked for against shown</h2>\n"
    yield (
        '<p class="soft">Sensitivity: of the images that were asked to show a finding on a side, how many do. '
        "Specificity: of the others, how many do not. In brackets the 95 % interval.</p>\n"
    )
    yield from _scores(generated.classes, generated.grades)
    yield (
        "</section>\n<section>\n<h2>How well the classifier sees</h2>\n"
        f'<p class="soft">The classifier “{escape(classifier.name)}”, on drawn radiographs of {size}² of patients '
        "that it was not trained on.</p>\n"
    )
    yield from _scores(own.classes, own.grades)
    yield "</section>\n"


def _scores(classes: Mapping[str, Score], grades: Mapping[str, Rate]) -> Iterator[str]:
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


def _runs(page: Page) -> Iterator[str]:
    for run in page.runs:
        yield f"<section>\n<h2>Training: {escape(run.name)}</h2>\n"
        curves = [svg for svg in (loss_svg(run), speed_svg(run)) if svg]
        yield '<div class="curves">' + "".join(f"<div>{svg}</div>" for svg in curves) + "</div>\n"
        if run.sheet and (page.reconstructions or not run.reconstructs):
            step = int(run.sheet.stem) if run.sheet.stem.isdigit() else run.sheet.stem
            what = "Validation images above their reconstructions" if run.reconstructs else "Samples, a row a prompt"
            caption = f"<figcaption>{what}, step {escape(str(step))}</figcaption>"
            yield f'<figure class="sheet">{_image(_sheet(run), what)}{caption}</figure>\n'
        yield "</section>\n"


def _sheet(run: Run) -> bytes:
    """The run's last sheet as PNG bytes, no larger than a screen needs.

    Raises:
      UserError: it is no PNG, is damaged or has too many pixels.
    """
    assert run.sheet is not None
    try:
        with open_picture(run.sheet, _SHEET_PIXELS) as sheet:
            gray = sheet.convert("L")
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UserError(f"{run.sheet}: cannot be decoded ({error or type(error).__name__}); remove it") from error
    gray.thumbnail((_SHEET_SIDE, _SHEET_SIDE), Image.Resampling.LANCZOS)
    return encode_png(np.asarray(gray)[..., None])


def _settings(page: Page) -> Iterator[str]:
    if page.settings:
        yield "<details>\n<summary>Settings</summary>\n"
        for title, text in page.settings.items():
            yield f"<h3>{escape(title)}</h3>\n<pre>{escape(text)}</pre>\n"
        yield "</details>\n"
