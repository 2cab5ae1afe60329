"""The images themselves: sets side by side at the same prompts, or each set by what was asked for."""

import base64
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from jaxcxr.data.images import encode_png
from jaxcxr.evaluation.findings import Report, in_words
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.page.drawings import breakable
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.evaluation.tables import in_words as number_in_words

_MOST_GROUPS = 48
_MOST_PROMPTS = 12
_MOST_REAL = 24
_MOST_NEIGHBOURS = 20


def image(png: bytes, alt: str) -> str:
    """An `<img>` that holds its PNG file."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def samples(page: Page) -> Iterator[str]:
    """The section of generated images."""
    yield "<section>\n<h2>What was asked for, and what came</h2>\n"
    if page.classified:
        yield (
            '<p class="soft">Drawn in the order of the prompts, none chosen by hand. As on any radiograph, '
            "the patient’s left is on the right of the picture.</p>\n"
        )
    if prompts := _shared(page):
        yield from _side_by_side(page, prompts)
    else:
        yield from _one_by_one(page)
    yield "</section>\n"


def neighbours(page: Page) -> Iterator[str]:
    """The section of generated images beside the real ones that are nearest to them, the nearest first."""
    if not page.neighbours:
        return
    pairs = sorted(page.neighbours, key=lambda pair: pair[2])[:_MOST_NEIGHBOURS]
    yield f"<section>\n<h2>Nearest {escape(page.real_name)}</h2>\n"
    yield (
        '<p class="soft">On the left of each pair is a generated image, on the right the real one that is nearest to '
        f"it. These are the {len(pairs)} nearest of {len(page.neighbours)} pairs.</p>\n"
    )
    yield '<div class="pairs">\n'
    for generated, real, distance in pairs:
        both = _picture(generated, "generated chest radiograph") + _picture(real, "nearest real chest radiograph")
        texts = "".join(f"<span>{escape(one.text)}</span>" for one in (generated, real) if one.text)
        caption = f"<figcaption><b>distance {number_in_words(distance)}</b>{texts}</figcaption>"
        yield f'<figure><div class="pair">{both}</div>{caption}</figure>\n'
    yield "</div>\n</section>\n"


def _shared(page: Page) -> list[str]:
    """Texts of prompts that every one of several sets has, in the order of the first set; none where they are few."""
    texts = [dict.fromkeys(one.text for one in pictures if one.text) for pictures in page.generated.values()]
    if len(texts) < 2:
        return []
    shared = [text for text in texts[0] if all(text in others for others in texts[1:])]
    return shared if 2 * len(shared) >= min(map(len, texts)) else []


def _side_by_side(page: Page, prompts: Sequence[str]) -> Iterator[str]:
    """A row a prompt and a column a set: the first image of each. The prompts are spread evenly over all of them."""
    places = np.unique(np.linspace(0, len(prompts) - 1, min(_MOST_PROMPTS, len(prompts))).round().astype(int))
    spaced = ", evenly spaced" if len(places) < len(prompts) else ""
    yield f'<p class="soft">Prompts that all sets have: {len(places)} of {len(prompts)}{spaced}. '
    yield "Of each set the first image is shown.</p>\n"
    for place in places:
        yield f'<div class="prompt"><p>{escape(prompts[place])}</p>\n<div class="scroll"><div class="matrix">\n'
        for name, pictures in page.generated.items():
            index = next(index for index, one in enumerate(pictures) if one.text == prompts[place])
            yield _figure(pictures[index], "", page.report(name), index, name)
        yield "</div></div></div>\n"
    yield from _beside(page.real[:_MOST_REAL], page.real_name)


def _one_by_one(page: Page) -> Iterator[str]:
    level = 3 if len(page.generated) == 1 else 4
    each = max(1, page.shown // max(1, len(page.generated)))
    for name, pictures in page.generated.items():
        if level == 4:
            yield f"<h3>{escape(name)}</h3>\n"
        if name in page.classified:
            yield from _by_asked(page, name, each, level)
        else:
            yield from _figures(pictures[:each])
    if not page.classified:
        yield from _beside(page.real[:_MOST_REAL], page.real_name)


def _by_asked(page: Page, name: str, shown: int, level: int) -> Iterator[str]:
    """Images of a set by what was asked for, each with what a classifier saw, and phantoms that show it."""
    pictures, generated, real = page.generated[name], page.classified[name].generated, page.classified[name].real
    groups: dict[bytes, list[int]] = {}
    for index, (asked, about) in enumerate(zip(generated.asked, generated.about, strict=True)):
        groups.setdefault(asked.tobytes() + about.tobytes(), []).append(index)
    each = max(1, shown // len(groups))
    for members in list(groups.values())[:_MOST_GROUPS]:
        asked, about = generated.asked[members[0]], generated.about[members[0]]
        right = int(generated.right[members].sum())
        title = f"{in_words(asked, about).capitalize()} <small>{right} of {len(members)} show it</small>"
        yield f"<h{level}>{title}</h{level}>\n"
        yield from _figures([pictures[index] for index in members[:each]], generated, members)
        alike = np.flatnonzero(((real.asked == asked) | ~about).all(axis=1))[: max(1, each // 2)]
        yield from _beside([page.real[index] for index in alike if index < len(page.real)], page.real_name)


def _beside(pictures: Sequence[Picture], name: str) -> Iterator[str]:
    if pictures:
        yield f'<div class="beside"><p>For comparison, from the {escape(name)}:</p>\n'
        yield from _figures(pictures)
        yield "</div>\n"


def _figures(pictures: Sequence[Picture], seen: Report | None = None, members: Sequence[int] = ()) -> Iterator[str]:
    """Pictures with their texts, and with what the classifier saw where that is given."""
    yield '<div class="grid">\n'
    for number, picture in enumerate(pictures):
        yield _figure(picture, picture.text, seen, members[number] if seen else 0)
    yield "</div>\n"


def _figure(picture: Picture, text: str, seen: Report | None, index: int, name: str = "") -> str:
    """A picture under the name of its set and over its text, with what the classifier saw in it, its `index`-th one."""
    kind = caption = ""
    if name:
        caption = f'<span class="set">{breakable(name)}</span>'
    if seen:
        about, right = seen.about[index], seen.right[index]
        asked, saw = (in_words(classes[index] & about, about) for classes in (seen.asked, seen.seen))
        kind = ' class="right"' if right else ' class="wrong"'
        caption += f"<b>{'✓' if right else '✗ wrong:'} asked {asked}, saw {saw}</b>"
    caption += escape(text)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{kind}>{_picture(picture)}{below}</figure>\n"


def _picture(picture: Picture, alt: str = "chest radiograph") -> str:
    return image(encode_png(picture.pixels[..., None]), alt)
