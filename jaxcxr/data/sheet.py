"""A sheet of prepared records to look at: pictures with their prompts."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcxr.data import images
from jaxcxr.data.loader import as_text

_COLUMNS, _ROWS, _TILE, _GAP = 6, 4, 192, 8
_LINE, _LINES, _CHARACTERS = 13, 5, 34


def write(source: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes up to 24 records, spread evenly over `source`, as one PNG; long prompts end in an ellipsis."""
    count = min(len(source), _COLUMNS * _ROWS)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    width, height = _TILE + _GAP, _TILE + _LINE * _LINES + 2 * _GAP
    rows = -(-count // _COLUMNS)
    page = Image.new("RGB", (min(count, _COLUMNS) * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(11)
    for place, index in enumerate(chosen):
        record = source[int(index)]
        left, top = _GAP + place % _COLUMNS * width, _GAP + place // _COLUMNS * height
        picture = images.picture_of(images.decode_png(record["image"]))
        page.paste(picture.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left, top))
        lines = textwrap.wrap(as_text(record["prompts"][0]), _CHARACTERS, max_lines=_LINES, placeholder=" …")
        for number, line in enumerate(lines):
            draw.text((left, top + _TILE + 2 + number * _LINE), line, fill="black", font=font)
    page.save(path)
