"""The two folders that an evaluation compares: generated images with their manifest, and real images or phantoms."""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxcxr import parsing
from jaxcxr.data.images import UnreadableImage, load_square
from jaxcxr.errors import UserError
from jaxcxr.files import inside
from jaxcxr.manifest import MANIFEST, MOST_BYTES
from jaxcxr.phantoms.generator import KINDS, Finding
from jaxcxr.phantoms.prompts import EFFUSIONS, Asked, asked_effusion
from jaxcxr.phantoms.tree import SETTINGS, TRUTH, read_settings

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
class _Generated:
    """What is read of a line of `manifest.jsonl`."""

    file_name: str | None = None
    prompt: str = ""
    asked: tuple[Finding, ...] | None = None
    denied: tuple[str, ...] = ()
    effusion: str | None = None


@dataclasses.dataclass(frozen=True)
class _Truth:
    """What is read of a line of a phantom tree's truth."""

    subject_id: int
    study_id: int
    dicom_id: str
    findings: tuple[Finding, ...]
    split: str = ""


def read_generated(folder: Path, size: int) -> list[Picture]:
    """Reads what `jaxcxr sample` wrote, at `size` pixels a side, in the manifest's order.

    Raises:
      UserError: the manifest or an image is missing, damaged or outside of the folder, or what was asked for does not
        exist.
    """
    manifest = folder / MANIFEST
    pictures = []
    remedy = "give a folder of `jaxcxr sample`"
    rows: Iterable[_Generated] = parsing.read_lines(manifest, _Generated, remedy=remedy, most=MOST_BYTES)
    for number, row in enumerate(rows, 1):
        where = f"{manifest}: image {number}"
        if row.file_name is None:
            raise UserError(f"{where} has no file_name; sample again")
        pictures.append(Picture(_pixels(inside(folder, row.file_name), size), row.prompt, _asked(row, where)))
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
    seed = read_settings(folder).settings.get("seed")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"{folder / SETTINGS}: has no seed of 0 or more; write the phantoms again")
    return seed


def read_phantoms(folder: Path, size: int, limit: int) -> list[Picture]:
    """Reads the first `limit` images of a phantom tree that no model was trained on, with their truth.

    Raises:
      UserError: the truth or an image is missing or damaged.
    """
    truth = folder / TRUTH
    rows: Iterable[_Truth] = parsing.read_lines(truth, _Truth, remedy="write the phantoms again", most=MOST_BYTES)
    pictures = []
    for row in itertools.islice((row for row in rows if row.split != "train"), limit):
        study = f"p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}"
        file = inside(folder, f"files/{study}/{row.dicom_id}.jpg")
        pictures.append(Picture(_pixels(file, size), _findings_text(row.findings), _shown(row.findings, truth)))
    if not pictures:
        raise UserError(f"{truth}: lists no images but those to train on; write the phantoms again, of more patients")
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


def _pixels(file: Path, size: int) -> np.ndarray:
    try:
        return load_square(file, size)[..., 0]
    except (FileNotFoundError, UnreadableImage) as error:
        raise UserError(f"{file}: cannot be decoded ({error}); write the folder again") from error


def _asked(row: _Generated, where: str) -> Asked | None:
    """What a manifest's line says was asked for; its field `effusion` alone, as in older ones, says it too."""
    if row.asked is not None:
        return Asked(row.asked, row.denied).check(where)
    if not row.effusion:
        return None
    if row.effusion not in EFFUSIONS:
        raise UserError(f"{where} has effusion {row.effusion[:20]!r}; it is one of {', '.join(EFFUSIONS)}")
    return asked_effusion(row.effusion)


def _shown(findings: tuple[Finding, ...], truth: Path) -> Asked:
    """A phantom's findings; every other kind is denied."""
    there = {finding.kind for finding in findings}
    return Asked(findings, tuple(kind for kind in KINDS if kind not in there)).check(str(truth))


def _findings_text(findings: Iterable[Finding]) -> str:
    """A phantom's findings in words: "small left effusion, right mid consolidation"."""
    said = []
    for finding in findings:
        millimetres = f"{finding.mm} mm" if finding.mm else ""
        words = (millimetres, finding.size, finding.side, finding.zone, finding.device or finding.kind)
        said.append(" ".join(word for word in words if word))
    return ", ".join(said) or "no finding"
