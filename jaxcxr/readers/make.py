"""Writes a study: a folder that a browser opens without a server, and its key, which stays elsewhere."""

import base64
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from jaxcxr import html
from jaxcxr.data.images import encode_png, load_square
from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.files import new_file, new_folder
from jaxcxr.readers import design
from jaxcxr.readers.deck import Case, Deck, name_of
from jaxcxr.readers.design import Planned, Settings
from jaxcxr.readers.key import FORMAT, Key, to_json
from jaxcxr.readers.tasks import CONFIDENCE, REAL, SYNTHETIC, TASKS

JPEG = 90
"""Quality of the JPEG that images become where some may have been one before."""
_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("viewer.js", "storage.js", "reading.js")
_TELLS = 0.75  # AUROC from which a single number is said to tell the classes apart
_LOSSLESS = {".png", ".bmp", ".tif", ".tiff"}
_DATE = 946_684_800  # 2000-01-01, of every file


@dataclasses.dataclass(frozen=True)
class Study:
    """What was made.

    Attributes:
      key: of the study.
      items: how many are shown, repeats included.
      images: how many files.
    """

    key: Key
    items: int
    images: int


def check_places(out: Path, key: Path) -> None:
    """Raises UserError where the key would lie in the study's folder, or one of the two exists."""
    inside = key.resolve() == out.resolve() or key.resolve().is_relative_to(out.resolve())
    if inside:
        raise UserError(f"--key {key}: lies in {out}, which readers get; name a file elsewhere")
    if key.exists():
        raise UserError(f"--key {key}: exists already; name a new file, or remove it with its study")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder, or remove it with its key")


def jpeg_quality(sets: Sequence[ImageSet]) -> int:
    """`JPEG` where an image may have been a lossy file, or the set does not say; 0 where all are lossless files."""

    def lossless(images: ImageSet) -> bool:
        if images.kind in ("prepared", "phantoms"):  # whose sources are JPEGs
            return False
        return all(Path(item.stamp.rsplit("/", 2)[0]).suffix.lower() in _LOSSLESS for item in images.items)

    return 0 if all(map(lossless, sets)) else JPEG


def make(
    sets: Mapping[str, tuple[ImageSet, Literal["real", "synthetic"]]],
    settings: Settings,
    out: Path,
    key_file: Path,
    one_file: bool = False,
) -> Study:
    """Writes the folder and the key.

    Args:
      sets: images and their class by the name that the key has of them.
      settings: of the study.
      out: a new folder.
      key_file: a new file, outside of it.
      one_file: put the images into the page.

    Raises:
      UserError: as `check_places` and `design.plan`, or one of the two cannot be written.
    """
    check_places(out, key_file)
    decks = [Deck(images, name, settings.seed, _file(settings)) for name, (images, _) in sets.items()]
    kinds: dict[str, str] = {name: kind for name, (_, kind) in sets.items()}
    items = design.plan(decks, kinds, settings)
    orders = design.orders(items, settings)
    cases = [case for deck in decks for case in deck.cases]
    files = dict(sorted((case.name, case.png) for case in cases))
    study = _id(items, settings.seed)
    notes = (*_notes(settings, sets, decks), *tells(cases, kinds))
    about = {key: value for key, value in dataclasses.asdict(settings).items() if key != "title"}
    truths = {name: item.truth for name, item in items.items()}
    key = Key(FORMAT, study, kinds, tuple(orders), truths, about, notes)
    with new_folder(out, private=True) as folder, new_file(key_file, private=True) as kept:
        kept.write_bytes(to_json(key))
        page = _page(study, items, orders, settings, files if one_file else {})
        _write(folder, page, {} if one_file else files)
    return Study(key, len(items), len(files))


def as_shown(item: Item, settings: Settings) -> np.ndarray:
    """An image as readers see it, uint8 (S, S): gray, square, of one size, and through one JPEG.

    Raises:
      UnreadableImage: it cannot be decoded.
      FileNotFoundError: it is gone.
    """
    if settings.fit == "crop":
        whole = item.load(0)
        height, width = whole.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        middle = Image.fromarray(whole[top : top + side, left : left + side])
        pixels = load_square(middle, settings.size)[..., 0]
    else:
        pixels = item.load(settings.size)
    if not settings.jpeg:
        return pixels
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=settings.jpeg)
    with Image.open(data) as decoded:
        return np.asarray(decoded)


def tells(cases: Sequence[Case], kinds: Mapping[str, str]) -> list[str]:
    """Which single numbers of the images tell the classes apart, a line each; a reader might learn to see them."""
    synthetic = np.array([kinds[case.set] == SYNTHETIC for case in cases], bool)
    if synthetic.all() or not synthetic.any():
        return []
    found = []
    measured = [_measures(case.png) for case in cases]
    counts = int(synthetic.sum()), int((~synthetic).sum())
    # Three standard errors of classes that are alike (Mann and Whitney 1947): few images differ by chance.
    least = max(_TELLS, 0.5 + 3 * math.sqrt((sum(counts) + 1) / (12 * math.prod(counts))))
    for name in measured[0]:
        area = auroc(synthetic, [each[name] for each in measured])
        if max(area, 1 - area) >= least:
            more = SYNTHETIC if area > 0.5 else REAL
            found.append(
                f"{name} alone tells the classes apart, AUROC {max(area, 1 - area):.2f}: more in {more} images"
            )
    return found


def _file(settings: Settings) -> Callable[[Item], bytes]:
    return lambda item: encode_png(as_shown(item, settings)[..., None])


def _measures(png: bytes) -> dict[str, float]:
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture).astype(np.float64)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    inner = pixels[1:-1, 1:-1]
    detail = 4 * inner - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    return {
        "mean gray level": pixels.mean(),
        "contrast (standard deviation)": pixels.std(),
        "darkest gray level": pixels.min(),
        "brightest gray level": pixels.max(),
        "black at the edges": (edge < 4).mean(),
        "fine detail (mean absolute Laplacian)": np.abs(detail).mean(),
    }


def _id(items: Mapping[str, Planned], seed: int) -> str:
    """The study's id, a digest of what is shown."""
    shown = json.dumps([[name, item.shown()] for name, item in items.items()])
    return name_of(shown.encode(), seed)


def _notes(settings: Settings, sets: Mapping[str, Any], decks: Sequence[Deck]) -> list[str]:
    step = f"JPEG of quality {settings.jpeg}, decoded" if settings.jpeg else "no JPEG"
    fit = "by their centre" if settings.fit == "crop" else "with black at their sides"
    notes = [
        f"every image: gray, 8 bits, square {fit}, {settings.size} × {settings.size}, {step}, PNG without metadata",
        *(
            f"{deck.name}: {deck.unreadable} images cannot be read, others took their place"
            for deck in decks
            if deck.unreadable
        ),
    ]
    if settings.fit == "pad":
        for deck in decks:
            odd = sum(len(set(case.item.load(0).shape)) > 1 for case in deck.cases)
            if odd:
                notes.append(
                    f"{deck.name}: {odd} of {len(deck.cases)} images are not square, so have black at their sides"
                )
    return notes


def _page(
    study: str,
    items: Mapping[str, Planned],
    orders: Mapping[str, Sequence[str]],
    settings: Settings,
    files: Mapping[str, bytes],
) -> str:
    """The page as HTML, with the images in `files`."""
    data = {
        "study": study,
        "title": settings.title,
        "size": settings.size,
        "confidence": list(CONFIDENCE),
        "tasks": {name: _asked(name) for name in settings.tasks},
        "items": {name: item.shown() for name, item in items.items()},
        "orders": orders,
        "files": {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in files.items()},
    }
    # "<" is written so that no text can end the script.
    said = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join(
        [f'"use strict";\nconst STUDY = {said};', *((_PAGE / name).read_text("utf-8") for name in _SCRIPTS)]
    )
    body, style = ((_PAGE / name).read_text("utf-8") for name in ("reading.html", "reading.css"))
    return html.document(settings.title, body, style, script, images="data:" if files else "'self' file:")


def _asked(name: str) -> dict[str, Any]:
    task = TASKS[name]
    about = ("title", "question", "images", "confidence", "text")
    return {"choices": [dataclasses.asdict(choice) for choice in task.choices]} | {
        key: getattr(task, key) for key in about
    }


def _write(folder: Path, page: str, files: Mapping[str, bytes]) -> None:
    """Writes the files in the order of their names, all of one date: neither says which images came first."""
    (folder / "index.html").write_text(page, "utf-8")
    written = [folder / "index.html"]
    if files:
        (folder / "images").mkdir()
    for name, png in files.items():
        (folder / "images" / f"{name}.png").write_bytes(png)
        written.append(folder / "images" / f"{name}.png")
    for file in written:
        os.utime(file, (_DATE, _DATE))
