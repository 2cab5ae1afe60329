"""The pages of an audit: the numbers, and apart from them a local page with images and texts of patients."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from jaxcxr import html
from jaxcxr.audit.audit import Audit
from jaxcxr.audit.similarity import PERCENTILES, Similarity
from jaxcxr.audit.verdict import CRITERIA
from jaxcxr.data.images import encode_png
from jaxcxr.evaluation.page.pictures import image
from jaxcxr.evaluation.tables import in_words
from jaxcxr.phantoms.scores import Rate

_CSS = Path(__file__).parents[1] / "evaluation" / "page" / "page.css"
LOCAL = "Images and texts of patients. For this machine alone, never part of a release"


def render(found: Audit, title: str) -> str:
    """The numbers as HTML: UTF-8, no scripts, no addresses, no picture, no text of a patient."""
    parts = (_head(found, title), _counts(found), _similarities(found), _membership(found), _prompts(found))
    return html.document(title, "".join(text for part in parts for text in part), style=_CSS.read_text("utf-8"))


def render_pairs(found: Audit, title: str) -> str:
    """The nearest pairs as pictures, and the training prompts that move the prediction furthest: a local page."""
    body = "".join([*_local_head(title), *_pairs(found), *_texts(found)])
    return html.document(title, body, style=_CSS.read_text("utf-8"))


def _head(found: Audit, title: str) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}</h1>\n<p>Does the model hand out its training images?</p>\n"
    yield f'<span class="notice">Verdict: {escape(found.verdict.verdict)}</span>\n'
    yield from (f"<p>{escape(reason)}.</p>\n" for reason in found.verdict.reasons)
    yield "</header>\n<details>\n<summary>Criteria</summary>\n"
    yield from (f'<p class="soft">{escape(line)}</p>\n' for line in CRITERIA)
    yield "</details>\n"


def _counts(found: Audit) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for counts in found.counts.values() for kind in counts))
    yield "<section>\n<h2>Images</h2>\n"
    lines = [[name, *(f"{counts.get(kind, 0):,}" for kind in kinds)] for name, counts in found.counts.items()]
    yield html.table([["", *kinds], *lines])
    yield from (f'<p class="soft">Left out: {escape(line)}</p>\n' for line in found.left_out)
    yield "</section>\n"


def _similarities(found: Audit) -> Iterator[str]:
    for one in found.similarities:
        yield f"<section>\n<h2>{escape(one.extractor)}</h2>\n"
        yield f'<p class="soft">Weights {escape(one.digest)}. A threshold of {one.threshold.value:.4g} flags at most '
        yield f"{100 * one.threshold.rate:g} % of images that are no copies, by {one.threshold.n} held-out patients."
        yield "</p>\n"
        yield html.table(list(_rows(one)))
        yield "<h3>Planted copies that are found</h3>\n"
        yield html.table([["", *one.recalls], ["found", *map(_rate, one.recalls.values())]])
        yield "<h3>Similarity with the nearest training image, by percentile</h3>\n"
        lines = [[name, *(f"{value:.4f}" for value in values)] for name, values in one.percentiles.items()]
        yield html.table([["", *(f"{percent} %" for percent in PERCENTILES)], *lines])
        yield "</section>\n"


def _rows(one: Similarity) -> Iterator[list[str]]:
    share, all_images, near = one.share, one.exchange, one.exchange_flagged
    yield ["", "value"]
    yield ["flagged images", f"{one.flagged.hits} of {one.flagged.total}: {_rate(one.flagged)}"]
    yield ["share of copies", f"{in_words(share.value, share.low, share.high)}"]
    for name, each in (("all images", all_images), ("images as near as a copy", near)):
        said = f"{each.nearer} of {each.total}; {100 * each.chance:.1f} % by chance; p = {each.p:.2g}"
        yield [f"nearer to training images, {name}", said]
    yield ["Z_U, C_T", f"{one.z_u:.2f}, {one.c_t:.2f}"]
    yield ["authenticity", in_words(one.authenticity)]
    yield ["median d₁/d₂: generated, held-out", f"{one.ratio['generated']:.3f}, {one.ratio['held_out']:.3f}"]
    yield ["d₁/d₂ below that of held-out images", _rate(one.low_ratio)]


def _rate(rate: Rate) -> str:
    return in_words(rate.share, *rate.interval)


def _membership(found: Audit) -> Iterator[str]:
    if not found.attacks:
        return
    rates = list(dict.fromkeys(rate for one in found.attacks for rate in one.found))
    heads = ["", "AUC", *(f"found at {100 * rate:g} % false positives" for rate in rates), "members", "others"]
    lines = [
        [
            one.name,
            in_words(one.auc, one.low, one.high),
            *(in_words(one.found[rate]) for rate in rates),
            str(one.members),
            str(one.others),
        ]
        for one in found.attacks
    ]
    yield f"<section>\n<h2>Membership</h2>\n{html.table([heads, *lines])}</section>\n"


def _prompts(found: Audit) -> Iterator[str]:
    if (about := found.prompts) is None:
        return
    norms = {"training": about.train, "held-out": about.held_out}
    norms |= {"training, with ___": about.with_marker, "the same without": about.without_marker}
    lines = [[name, _median(values), str(len(values))] for name, values in norms.items()]
    yield "<section>\n<h2>Prompts</h2>\n"
    yield f'<p class="soft">{about.marked} of {about.texts} different training prompts have the marker ___. '
    yield "The conditional noise is how far a prompt moves the prediction.</p>\n"
    yield html.table([["prompts", "conditional noise, median", "n"], *lines])
    if about.auc is not None:
        yield f"<p>Training prompts differ from others with AUC {in_words(about.auc, about.low, about.high)}.</p>\n"
    if about.difference is not None:
        yield f"<p>The marker adds {in_words(*about.difference)} to the conditional noise.</p>\n"
    yield "</section>\n"


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.4g}" if len(values) else "–"


def _local_head(title: str) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}: nearest pairs</h1>\n"
    yield f'<span class="notice">{escape(LOCAL)}</span>\n<span class="notice">Not for diagnosis</span>\n</header>\n'


def _pairs(found: Audit) -> Iterator[str]:
    for one in found.similarities:
        yield f"<section>\n<h2>{escape(one.extractor)}</h2>\n"
        yield '<p class="soft">On the left of each pair is a generated image, on the right the training image that is '
        yield f'most similar to it. Above {one.threshold.value:.4g} it counts as a copy.</p>\n<div class="pairs">\n'
        for place, other, similarity in one.pairs:
            items = found.sides.generated.images.items[place], found.sides.train.images.items[other]
            both = "".join(map(image, _pngs([item.load(found.size) for item in items]), ("generated", "training")))
            flagged = similarity > one.threshold.value
            kind, word = (' class="wrong"', ", flagged") if flagged else ("", "")
            caption = f"<figcaption><b>similarity {similarity:.4f}{word}</b>image {place}</figcaption>"
            yield f'<figure{kind}><div class="pair">{both}</div>{caption}</figure>\n'
        yield "</div>\n</section>\n"


def _pngs(pictures: Sequence[np.ndarray]) -> list[bytes]:
    return [encode_png(picture[..., None]) for picture in pictures]


def _texts(found: Audit) -> Iterator[str]:
    if found.prompts is None or not found.prompts.highest:
        return
    yield "<section>\n<h2>Training prompts that move the prediction furthest</h2>\n"
    lines = [[text, f"{norm:.4g}"] for text, norm in found.prompts.highest]
    yield html.table([["prompt", "conditional noise"], *lines])
    yield "</section>\n"
