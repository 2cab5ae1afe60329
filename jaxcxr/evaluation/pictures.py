"""The two folders that an evaluation compares: generated images with their manifest, and real images or phantoms."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.data.images import UnreadableImage, load_square
from jaxcxr.errors import UserError
from jaxcxr.phantoms.prompts import EFFUSIONS
from jaxcxr.phantoms.tree import SETTINGS, TRUTH
from jaxcxr.sample import MANIFEST

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with what is known of it.

    `pixels` is uint8 (H, W). `text` is the prompt of a generated image, the findings of a phantom. `effusion` is one
    of `EFFUSIONS`, asked for or truly there, or empty where nobody says.
    """

    pixels: np.ndarray
    text: str = ""
    effusion: str = ""


def read_generated(folder: Path, size: int) -> list[Picture]:
    """Reads what `jaxcxr sample` wrote, at `size` pixels a side, in the manifest's order.

    Raises:
      UserError: the manifest or an image is missing or damaged, or an `effusion` field is none of `EFFUSIONS`.
    """
    manifest = folder / MANIFEST
    pictures = []
    for number, row in _json_lines(manifest, "give a folder that `jaxcxr sample` wrote"):
        if not isinstance(row.get("file_name"), str):
            raise UserError(f"{manifest}: line {number} has no file_name; sample again")
        effusion = row.get("effusion", "")
        if effusion and effusion not in EFFUSIONS:
            raise UserError(f"{manifest}: line {number} has effusion {effusion!r}; it is one of {', '.join(EFFUSIONS)}")
        pixels = _pixels(folder / row["file_name"], size)
        pictures.append(Picture(pixels, str(row.get("prompt", "")), effusion))
    if not pictures:
        raise UserError(f"{manifest}: lists no images; sample again")
    return pictures


def phantom_seed(folder: Path) -> int | None:
    """The seed that a phantom tree was drawn from; None if the folder is not a phantom tree.

    Raises:
      UserError: there is no such folder, or the tree's settings are damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give real images or a tree that `jaxcxr phantoms` wrote")
    if not (folder / TRUTH).is_file():
        return None
    try:
        return int(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"]["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SETTINGS}: cannot be read; write the phantoms again") from error


def read_phantoms(folder: Path, size: int, limit: int) -> list[Picture]:
    """Reads the first `limit` images of a phantom tree that no model was trained on, with their truth.

    Raises:
      UserError: the truth or an image is missing or damaged.
    """
    truth = folder / TRUTH
    rows = (row for _, row in _json_lines(truth, "write the phantoms again") if row.get("split") != "train")
    pictures = []
    try:
        for row in itertools.islice(rows, limit):
            patient = f"p{str(row['subject_id'])[:2]}/p{row['subject_id']}"
            file = folder / "files" / patient / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg"
            pictures.append(Picture(_pixels(file, size), _findings_text(row), _effusion(row)))
    except (KeyError, TypeError) as error:
        raise UserError(f"{truth}: is not as `jaxcxr phantoms` writes it; write the phantoms again") from error
    return pictures


def read_images(folder: Path, size: int, limit: int) -> list[Picture]:
    """Reads the first `limit` JPEG or PNG files found under `folder`; no text is read.

    Raises:
      UserError: there are none, or one is damaged.
    """
    files = itertools.islice((file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES), limit)
    pictures = [Picture(_pixels(file, size)) for file in sorted(files)]
    if not pictures:
        raise UserError(f"{folder}: has no JPEG or PNG files; give a folder of real images")
    return pictures


def _json_lines(file: Path, mend: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read; {mend}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON; {mend}") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}: line {number} is not a JSON object; {mend}")
        yield number, row


def _pixels(file: Path, size: int) -> np.ndarray:
    try:
        return load_square(file, size)[..., 0]
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such image, though it is listed; write the folder again") from error
    except UnreadableImage as error:
        raise UserError(f"{file}: cannot be decoded ({error}); write the folder again") from error


def _effusion(row: Mapping[str, Any]) -> str:
    """The side of a truth row's effusion."""
    sides = [finding["side"] for finding in row["findings"] if finding["kind"] == "effusion"]
    return {"bilateral": "both"}.get(sides[0], sides[0]) if sides else "none"


def _findings_text(row: Mapping[str, Any]) -> str:
    """A truth row's findings in words: "small left effusion, right mid consolidation"."""
    said = []
    for finding in row["findings"]:
        name = finding.get("device") or finding["kind"]
        millimetres = f"{finding['mm']} mm" if "mm" in finding else ""
        words = (millimetres, finding.get("size"), finding.get("side"), finding.get("zone"), name)
        said.append(" ".join(word for word in words if word))
    return ", ".join(said) or "no finding"
