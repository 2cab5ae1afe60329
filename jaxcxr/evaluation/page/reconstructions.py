"""The page of what an autoencoder loses: its numbers, and the images that it is worst for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from jaxcxr import html
from jaxcxr.data.images import encode_png
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.evaluation.page.pictures import image
from jaxcxr.evaluation.tables import in_words

_CSS = Path(__file__).parent / "page.css"
_GAIN = 4  # of differences, so that they can be seen
_BETTER = {"low": "↓", "high": "↑"}


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """Everything that the page shows.

    Attributes:
      checkpoint: the autoencoder's name.
      images: the set's name.
      of_patients: whether the images are of patients.
      shown: whether they may be on the page.
      rows: the numbers.
      left_out: why others are not there, a line each.
      pairs: by metric, the images that it is worst for and their reconstructions, uint8 (H, W) each.
    """

    checkpoint: str
    images: str
    of_patients: bool
    shown: bool
    rows: Sequence[Row]
    left_out: Sequence[str]
    pairs: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]


def render(page: Reconstructed) -> str:
    """The page as HTML: UTF-8, no scripts, no addresses, every text escaped."""
    title = f"What {page.checkpoint} loses"
    body = "".join([*_head(page, title), *_numbers(page), *_worst(page)])
    return html.document(title, body, style=_CSS.read_text("utf-8"))


def _head(page: Reconstructed, title: str) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}</h1>\n"
    yield f"<p>Images of {escape(page.images)} against what the autoencoder makes of the mean of their posterior.</p>\n"
    yield '<span class="notice">Not for diagnosis</span>\n'
    if page.of_patients and page.shown:
        yield '<span class="notice">The images on this page are of patients</span>\n'
    yield "</header>\n"


def _numbers(page: Reconstructed) -> Iterator[str]:
    yield "<section>\n<h2>Numbers</h2>\n"
    yield (
        '<p class="soft">Means over the images, with 95 % intervals by patient. RMSE is in gray levels of 255, PSNR in '
        "dB. ↓ lower is better, ↑ higher is better.</p>\n"
    )
    groups = list(dict.fromkeys(row.group for row in page.rows))
    metrics = list(dict.fromkeys(row.metric for row in page.rows))
    cells = {(row.group, row.metric): f"{in_words(row.value, row.low, row.high)}" for row in page.rows}
    counts = {row.group: f"{row.n:,}" for row in page.rows}
    heads = ["", *(f"{metric} {_BETTER[BETTER[metric]]}" for metric in metrics), "n"]
    lines = [
        [group or "all", *(cells.get((group, metric), "–") for metric in metrics), counts[group]] for group in groups
    ]
    yield html.table([heads, *lines])
    yield "".join(f'<p class="soft">Left out: {escape(line)}</p>\n' for line in page.left_out)
    yield "</section>\n"


def _worst(page: Reconstructed) -> Iterator[str]:
    if not page.shown:
        return
    yield "<section>\n<h2>The worst ones</h2>\n"
    yield f'<p class="soft">Image, reconstruction, and {_GAIN} times their difference.</p>\n'
    for metric, pairs in page.pairs.items():
        yield f'<h3>By {escape(metric)}</h3>\n<div class="pairs">\n'
        for one, other in pairs:
            change = np.abs(one.astype(int) - other)
            three = (one, other, np.minimum(_GAIN * change, 255).astype(np.uint8))
            names = ("image", "reconstruction", "difference")
            shown = "".join(image(encode_png(each[..., None]), name) for each, name in zip(three, names, strict=True))
            yield f'<figure><div class="pair">{shown}</div></figure>\n'
        yield "</div>\n"
    yield "</section>\n"
