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
from jaxcxr.evaluation.findings import Classifier, Table
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.prompts import EFFUSIONS

_SHEET_SIDE, _SHEET_PIXELS = 1024, 2**27
_TITLES = {
    "none": "No effusion",
    "left": "Left effusion",
    "right": "Right effusion",
    "both": "Bilateral effusion",
}


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the classifier saw: the side in every generated image, and the tables of generated and of real images."""

    classifier: Classifier
    shown: Sequence[str]
    table: Table
    real: Table


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that the page shows; what is not here cannot get onto it.

    Without a `judgement` nothing is said of findings. `settings` are texts by title, for the end of the page.
    """

    title: str
    generated: Sequence[Picture]
    real: Sequence[Picture]
    real_name: str
    judgement: Judgement | None
    runs: Sequence[Run]
    settings: Mapping[str, str]
    reconstructions: bool = False
    """Whether sheets that hold images of the data set may be shown."""
    per_side: int = 12
    """Generated images shown of each side asked for; four times as many where no side was."""


def render(page: Page) -> str:
    """The page as HTML: UTF-8, no scripts, no addresses, every text escaped."""
    body = "".join([*_head(page), *_samples(page), *_table(page), *_runs(page), *_settings(page)])
    return html.document(page.title, body)


def _head(page: Page) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(page.title)}</h1>\n"
    beside = f", beside {page.real_name} for comparison" if page.real else ""
    yield f"<p>Chest radiographs drawn by a latent diffusion model from the words of a report{escape(beside)}.</p>\n"
    yield '<span class="notice">Synthetic images, not for diagnosis</span>\n'
    if page.real and not page.judgement:
        yield f'<span class="notice">The {escape(page.real_name)} on this page are of patients</span>\n'
    if page.judgement:
        table, ceiling = page.judgement.table, page.judgement.real
        yield '<div class="numbers">\n'
        yield _number("of the generated images show the effusion they were asked for", table)
        yield _number(f"of the {page.real_name} kept from training are read correctly by the same classifier", ceiling)
        yield _number(
            "of new phantoms, drawn for the classifier’s own test, are read correctly",
            page.judgement.classifier.held_out,
        )
        yield "</div>\n"
    yield "</header>\n"


def _number(what: str, table: Table) -> str:
    low, high = table.interval
    counts = f"{table.correct} of {table.total}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return f"<p><b>{_percent(table.accuracy)}</b> {escape(what)} <small>{counts}</small></p>\n"


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def _samples(page: Page) -> Iterator[str]:
    yield "<section>\n<h2>What was asked for, and what came</h2>\n"
    if not page.judgement:
        yield from _figures(page.generated[: 4 * page.per_side])
        yield from _beside(page.real[:24], page.real_name)
        yield "</section>\n"
        return
    yield (
        '<p class="soft">Drawn in the order of the prompts, none chosen by hand. As on any radiograph, '
        "the patient’s left is on the right of the picture.</p>\n"
    )
    for side in EFFUSIONS:
        found = [(p, seen) for p, seen in zip(page.generated, page.judgement.shown, strict=True) if p.effusion == side]
        if not found:
            continue
        correct = sum(seen == side for _, seen in found)
        yield f"<h3>{_TITLES[side]} <small>{correct} of {len(found)} show it</small></h3>\n"
        shown = found[: page.per_side]
        yield from _figures([picture for picture, _ in shown], [seen for _, seen in shown])
        yield from _beside([picture for picture in page.real if picture.effusion == side][:6], page.real_name)
    yield "</section>\n"


def _beside(pictures: Sequence[Picture], name: str) -> Iterator[str]:
    if pictures:
        yield f'<div class="beside"><p>For comparison, from the {escape(name)}:</p>\n'
        yield from _figures(pictures)
        yield "</div>\n"


def _figures(pictures: Sequence[Picture], shown: Sequence[str] = ()) -> Iterator[str]:
    """Pictures with their texts, and with what the classifier saw where that is given."""
    yield '<div class="grid">\n'
    for index, picture in enumerate(pictures):
        kind = verdict = ""
        if shown:
            right = shown[index] == picture.effusion
            kind = ' class="right"' if right else ' class="wrong"'
            verdict = f"<b>{'✓' if right else '✗ wrong:'} asked {picture.effusion}, saw {shown[index]}</b>"
        image = _image(encode_png(picture.pixels[..., None]), "chest radiograph")
        caption = f"<figcaption>{verdict}{escape(picture.text)}</figcaption>" if verdict or picture.text else ""
        yield f"<figure{kind}>{image}{caption}</figure>\n"
    yield "</div>\n"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(page: Page) -> Iterator[str]:
    if not page.judgement:
        return
    yield "<section>\n<h2>Asked for against shown</h2>\n"
    yield '<p class="soft">Rows: what was asked for. Columns: what the classifier saw. The diagonal is right.</p>\n'
    yield '<div class="scroll"><table>\n<thead><tr><th></th>'
    yield "".join(f'<th scope="col">saw {side}</th>' for side in EFFUSIONS) + "</tr></thead>\n<tbody>\n"
    for row, side in enumerate(EFFUSIONS):
        counts = page.judgement.table.counts[row]
        yield f'<tr><th scope="row">asked {side}</th>'
        for column, count in enumerate(counts):
            share = count / max(1, sum(counts))
            hit = ' class="hit"' if row == column else ""
            yield f'<td{hit} style="background: rgba(var(--tint), {0.55 * share:.2f})">{count}</td>'
        yield "</tr>\n"
    yield "</tbody></table></div>\n</section>\n"


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
