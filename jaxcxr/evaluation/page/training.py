"""The curves and sheets of training runs."""

from collections.abc import Iterator
from html import escape

import numpy as np
from PIL import Image

from jaxcxr.data.images import encode_png, open_picture
from jaxcxr.errors import UserError
from jaxcxr.evaluation.curves import Run, evaluation_svgs, loss_svg, speed_svg
from jaxcxr.evaluation.page.contents import Page
from jaxcxr.evaluation.page.pictures import image
from jaxcxr.methods import METHODS

_SHEET_SIDE, _SHEET_PIXELS = 1024, 2**27


def training(page: Page) -> Iterator[str]:
    """A section a run."""
    for run in page.runs:
        yield f"<section>\n<h2>Training: {escape(run.name)}</h2>\n"
        curves = [svg for svg in (loss_svg(run), *evaluation_svgs(run), speed_svg(run)) if svg]
        yield '<div class="curves">' + "".join(f"<div>{svg}</div>" for svg in curves) + "</div>\n"
        if run.sheet and (page.reconstructions or not run.reconstructs):
            step = int(run.sheet.stem) if run.sheet.stem.isdigit() else run.sheet.stem
            what = METHODS.get(run.method, METHODS["autoencoder"]).caption
            caption = f"<figcaption>{what}, step {escape(str(step))}</figcaption>"
            yield f'<figure class="sheet">{image(_sheet(run), what)}{caption}</figure>\n'
        yield "</section>\n"


def _sheet(run: Run) -> bytes:
    """The run's last sheet as PNG bytes, no larger than a screen needs.

    Raises:
      UserError: it is no PNG, is damaged or has too many pixels.
    """
    assert run.sheet is not None
    try:
        with open_picture(run.sheet, _SHEET_PIXELS) as sheet:
            shown = sheet.convert("L" if sheet.mode == "L" else "RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UserError(f"{run.sheet}: cannot be decoded ({error or type(error).__name__}); remove it") from error
    shown.thumbnail((_SHEET_SIDE, _SHEET_SIDE), Image.Resampling.LANCZOS)
    return encode_png(np.asarray(shown).reshape(shown.height, shown.width, -1))
