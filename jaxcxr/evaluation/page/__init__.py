"""The page to look at: one HTML file that needs nothing else, on paper-white or in the dark, on a desk or a phone."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from jaxcxr import html
from jaxcxr.evaluation.page.bars import by_group
from jaxcxr.evaluation.page.contents import PHANTOMS, Classified, Page
from jaxcxr.evaluation.page.findings import headline, scores
from jaxcxr.evaluation.page.numbers import numbers
from jaxcxr.evaluation.page.pictures import neighbours, samples
from jaxcxr.evaluation.page.plots import plots
from jaxcxr.evaluation.page.training import training

__all__ = ["PHANTOMS", "Classified", "Page", "render"]

_HERE = Path(__file__).parent


def render(page: Page) -> str:
    """The page as HTML: UTF-8, no addresses, every text escaped. Its one script sorts and filters the tables."""
    parts = (_head, numbers, by_group, plots, samples, neighbours, scores, training, _settings)
    body = "".join(text for part in parts for text in part(page))
    script = (_HERE / "tables.js").read_text("utf-8") if page.rows else ""
    return html.document(page.title, body, style=(_HERE / "page.css").read_text("utf-8"), script=script)


def _head(page: Page) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(page.title)}</h1>\n"
    beside = f", beside {page.real_name} for comparison" if page.real else ""
    yield f"<p>Chest radiographs drawn by generative models: {escape(', '.join(page.generated))}{escape(beside)}.</p>\n"
    yield '<span class="notice">Synthetic images, not for diagnosis</span>\n'
    if page.of_patients:
        yield f'<span class="notice">The {escape(page.real_name)} on this page are of patients</span>\n'
    yield from headline(page)
    yield "</header>\n"


def _settings(page: Page) -> Iterator[str]:
    if page.settings:
        yield "<details>\n<summary>Settings</summary>\n"
        for title, text in page.settings.items():
            yield f"<h3>{escape(title)}</h3>\n<pre>{escape(text)}</pre>\n"
        yield "</details>\n"
