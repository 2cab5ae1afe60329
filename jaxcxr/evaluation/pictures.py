"""The two folders that an evaluation compares: generated images with their manifest, and real images or phantoms."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr import parsing
from jaxcxr.data.images import UnreadableImage, load_square
from jaxcxr.errors import UserError
from jaxcxr.phantoms.generator import KINDS, Finding
from jaxcxr.phantoms.prompts import EFFUSIONS, Asked, asked_effusion
from jaxcxr.phantoms.tree import SETTINGS, TRUTH
from jaxcxr.sample import MANIFEST

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with what is known of it.

    `pixels` is uint8 (H, W). `text` is the prompt of a generated image, the findings of a phantom. `asked` is what a
    generated image was asked to show, what a phantom truly shows, and None where nobody says.
    """

    pixels: np.ndarray
    text: str = ""
    asked: Asked | None = None


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is read of a manifest's line to know what was asked for."""

    asked: tuple[Finding, ...] | None = None
    denied: tuple[str, ...] = ()
    effusion: str | None = None


def read_generated(folder: Path, size: int) -> list[Picture]:
    """Reads what `jaxcxr sample` wrote, at `size` pixels a side, in the manifest's order.

    Raises:
      UserError: the manifest or an image is missing or damaged, or what was asked for does not exist.
    """
    manifest = folder / MANIFEST
    pictures = []
    for number, row in _json_lines(manifest, "give a folder that `jaxcxr sample` wrote"):
        if not isinstance(row.get("file_name"), str):
            raise UserError(f"{manifest}: line {number} has no file_name; sample again")
        asked = _asked(row, f"{manifest}: line {number}")
        pixels = _pixels(folder / row["file_name"], size)
        pictures.append(Picture(pixels, str(row.get("prompt", "")), asked))
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
            pictures.append(Picture(_pixels(file, size), _findings_text(row), _truth(row, str(truth))))
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


def _asked(row: Mapping[str, Any], where: str) -> Asked | None:
    """What a manifest's line says was asked for; its field `effusion` alone, as in older ones, says it too."""
    fields: _Row = parsing.convert(row, _Row, where)
    if fields.asked is not None:
        return Asked(fields.asked, fields.denied).check(where)
    if not fields.effusion:
        return None
    if fields.effusion not in EFFUSIONS:
        said = fields.effusion[:20]
        raise UserError(f"{where}: has effusion {said!r}; it is one of {', '.join(EFFUSIONS)}")
    return asked_effusion(fields.effusion)


def _truth(row: Mapping[str, Any], where: str) -> Asked:
    """A truth row's findings; it denies every other kind."""
    findings: tuple[Finding, ...] = parsing.convert(row["findings"], tuple[Finding, ...], where)
    there = {finding.kind for finding in findings}
    return Asked(findings, tuple(kind for kind in KINDS if kind not in there)).check(where)


def _findings_text(row: Mapping[str, Any]) -> str:
    """A truth row's findings in words: "small left effusion, right mid consolidation"."""
    said = []
    for finding in row["findings"]:
        name = finding.get("device") or finding["kind"]
        millimetres = f"{finding['mm']} mm" if "mm" in finding else ""
        words = (millimetres, finding.get("size"), finding.get("side"), finding.get("zone"), name)
        said.append(" ".join(word for word in words if word))
    return ", ".join(said) or "no finding"
