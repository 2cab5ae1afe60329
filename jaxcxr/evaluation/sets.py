"""A set of images to evaluate, of any kind of folder: what is known of each image, and how it is read."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxcxr import hub, parsing
from jaxcxr.buckets import check_local
from jaxcxr.data import images
from jaxcxr.data.loader import as_text, open_split
from jaxcxr.data.records import PERSON, SPLITS, EmptySplit
from jaxcxr.data.source import wanted
from jaxcxr.data.summary import Summary
from jaxcxr.data.tables import read_rows
from jaxcxr.errors import UserError
from jaxcxr.evaluation.settings import GROUPS
from jaxcxr.files import inside
from jaxcxr.manifest import MANIFEST, METADATA, MOST_BYTES
from jaxcxr.phantoms.generator import KINDS, Finding
from jaxcxr.phantoms.prompts import EFFUSIONS, Asked, asked_effusion
from jaxcxr.phantoms.tree import SETTINGS, TRUTH, read_settings

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_TABLES = (METADATA, "metadata.csv", "prompts.csv")
_NO_LABEL = "no finding"
_SUMMARY = "summary.json"  # of a prepared folder


class Item(NamedTuple):
    """An image of a set.

    Attributes:
      load: called with a side in pixels it gives the image, uint8 (side, side), padded to a square; with 0 it gives the
        image as it is stored, uint8 (H, W). It raises UnreadableImage or FileNotFoundError.
      stamp: tells it from other images and from another state of its file.
      patient: whose image it is; of an unknown patient, a name that no other image has.
      text: the prompt, or a report's words.
      groups: values by `GROUPS`; an image may have several labels.
      asked: what it was asked to show, what a phantom truly shows; None where nobody says.
    """

    load: Callable[[int], np.ndarray]
    stamp: str
    patient: str
    text: str = ""
    groups: Mapping[str, tuple[str, ...]] = {}
    asked: Asked | None = None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images under a name.

    Attributes:
      name: for tables; the last part of the folder's path.
      kind: prepared, phantoms, samples or folder.
      items: the images.
    """

    name: str
    kind: str
    items: Sequence[Item]

    @functools.cached_property
    def stamp(self) -> str:
        """A digest of which images these are, by the states of their files."""
        stamps = [self.items.stamp] if isinstance(self.items, _Records) else [item.stamp for item in self.items]
        return hashlib.blake2b("\n".join(stamps).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def side(self) -> int:
        """Pixels of the longer side of the first image that can be read.

        Raises:
          UserError: none can.
        """
        for item in self.items:
            with contextlib.suppress(FileNotFoundError, images.UnreadableImage):
                return max(item.load(0).shape)
        raise UserError(f"{self.name}: none of its {len(self.items)} images can be read")


def labelled(items: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    """Which labels each image has, bool (N, len(names))."""
    found = [[name in item.groups.get("label", ()) for name in names] for item in items]
    return np.array(found, bool).reshape(len(items), len(names))


def by_group(items: Sequence[Item], columns: Sequence[str] = GROUPS) -> dict[str, np.ndarray]:
    """Which images belong to each group, bool (N,) by name, as `label=edema`."""
    found: dict[str, np.ndarray] = {}
    for place, item in enumerate(items):
        for column in columns:
            for value in item.groups.get(column, ()):
                found.setdefault(f"{column}={value}", np.zeros(len(items), bool))[place] = True
    return found


def open_set(place: str | Path) -> ImageSet:
    """Opens a prepared folder, a tree of phantoms, what `jaxcxr sample` wrote, or any folder of images.

    Args:
      place: the folder, or the name of a data set of the Hugging Face Hub. Of a prepared one the split `test` is read,
        or `validate` where that is empty; FOLDER:SPLIT names another. Of phantoms those are read that no model is
        trained on. A folder of images may have a `metadata.jsonl`, `metadata.csv` or `prompts.csv` with the columns
        file_name and, as far as they are known, text (or prompt), labels, patient, view, sex, age and race.

    Raises:
      UserError: there is no such folder, it has no images, or its tables are damaged.
    """
    check_local(place)
    folder, split = _split_of(str(place))
    if not str(place):
        raise UserError("a folder of images has an empty name; is a variable of your script unset?")
    folder = hub.find(folder, _of_hub, kind="dataset")
    if not folder.is_dir():
        prepared, _, named = str(place).rpartition(":")
        if prepared and (Path(prepared) / _SUMMARY).is_file():
            raise UserError(f"{place}: {prepared} has no split {named!r}; name one of {', '.join(SPLITS)}")
        raise UserError(f"{folder}: no such folder; give images, or a prepared folder with one of its splits")
    name = folder.resolve().name
    if (folder / _SUMMARY).is_file():
        return ImageSet(name, "prepared", _Records(folder, split))
    if split:
        raise UserError(f"{folder}:{split}: only a prepared folder has splits; leave out :{split}")
    if phantom_seed(folder) is not None:
        kind, items = "phantoms", _phantoms(folder)
    elif (folder / MANIFEST).is_file():
        kind, items = "samples", _samples(folder)
    else:
        kind, items = "folder", _listed(folder) if _table(folder) else _found(folder)
    return ImageSet(name, kind, items)


def _of_hub(files: Sequence[str]) -> list[str]:
    """Chooses the files of a data set of the hub."""
    chosen = wanted(files)
    if chosen[0].endswith(".parquet") and "metadata" not in chosen[0]:
        raise hub.Absent("is in Parquet; make a prepared folder of it with jaxcxr prepare --source, and give that")
    return chosen


def _split_of(place: str) -> tuple[Path, str]:
    head, _, split = place.rpartition(":")
    return (Path(head), split) if head and split in SPLITS and not Path(place).exists() else (Path(place), "")


class _Records(Sequence[Item]):
    """The items of a split of a prepared folder, whose records are read when asked for."""

    def __init__(self, folder: Path, split: str):
        summary = Summary.require(folder)
        chosen = split or next((name for name in ("test", "validate") if summary.splits.get(name)), "test")
        try:
            self._records = open_split(folder, chosen)
        except EmptySplit as error:
            raise UserError(
                f"{folder}: has no images in the split {chosen}; name another, as {folder}:train"
            ) from error
        self.stamp = f"{summary.fingerprint}/{chosen}/{stamp_of_records(folder)}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        record = self._records[index]
        labels = tuple(map(as_text, record["labels"])) or (_NO_LABEL,)
        groups = {"label": labels, "view": (as_text(record["view"]),) if record["view"] else ()}
        groups |= _person(dict(as_text(said).partition("=")[::2] for said in record.get("person", ())))
        text = as_text(record["prompts"][0]) if record["prompts"] else ""
        load = functools.partial(self._load, index)
        return Item(load, f"{self.stamp}/{index}", as_text(record["patient"]), text, groups)

    def _load(self, index: int, side: int) -> np.ndarray:
        return _from_bytes(self._records[index]["image"], side)


def stamp_of_records(folder: str | Path) -> str:
    """A digest of the states of a prepared folder's record files, whose pixels its fingerprint does not cover."""
    records = Path(folder) / Summary.require(Path(folder)).records
    stamps = sorted(map(_stamp, (file for file in records.iterdir() if file.is_file())))
    return hashlib.blake2b("\n".join(stamps).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _from_bytes(data: bytes, side: int) -> np.ndarray:
    pixels = images.gray(images.decode_png(data))
    return pixels if side in (0, len(pixels)) else images.load_square(Image.fromarray(pixels), side)[..., 0]


def _from_file(file: Path, side: int) -> np.ndarray:
    return images.load_square(file, side)[..., 0] if side else images.load_gray(file)


def _stamp(file: Path) -> str:
    about = os.stat(file)
    return f"{file.resolve()}/{about.st_size}/{about.st_mtime_ns}"


def _found(folder: Path) -> list[Item]:
    """The pictures of a folder and those below it, in the order of their names."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{folder}: has no JPEG or PNG files; give a folder of images")
    return [Item(functools.partial(_from_file, file), _stamp(file), str(file)) for file in files]


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in _TABLES if (folder / name).is_file()), None)


def _listed(folder: Path) -> list[Item]:
    """The pictures that a folder's table lists."""
    table = _table(folder)
    assert table is not None
    items = [_row_item(folder, table, number, row) for number, row in enumerate(_rows(table), 1)]
    if not items:
        raise UserError(f"{table}: lists no images")
    return items


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    if table.suffix == ".jsonl":
        yield from parsing.read_lines(table, dict[str, Any], most=MOST_BYTES)
        return
    for number, row in read_rows(table, ("file_name",)):
        if row is None:
            raise UserError(f"{table}: line {number} has more or fewer fields than the first line; fix it")
        labels = row.get("labels", "").replace("|", ";").split(";")
        yield {**row, "labels": [name.strip() for name in labels if name.strip()]}


def _row_item(folder: Path, table: Path, number: int, row: Mapping[str, Any]) -> Item:
    name, labels = row.get("file_name"), row.get("labels") or []
    if not isinstance(name, str) or not name:
        raise UserError(f"{table}: row {number} has no file_name")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{table}: row {number} has labels that are no list of texts")
    file = inside(folder, name)
    said = {key: str(row[key]) for key in (*GROUPS[1:], "patient", "text", "prompt") if row.get(key) not in (None, "")}
    groups = {"label": tuple(labels) or ((_NO_LABEL,) if "labels" in row else ()), **_person(said)}
    groups["view"] = (said["view"],) if "view" in said else ()
    text = said.get("text", said.get("prompt", ""))
    return Item(functools.partial(_from_file, file), _stamp(file), said.get("patient", str(file)), text, groups)


def _person(said: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The groups of what is known of a patient."""
    known = {key: said.get(key, "") for key in PERSON}
    known["age"] = _decade(known["age"])
    return {key: (value,) if value else () for key, value in known.items()}


def _decade(age: str) -> str:
    """An age in years as a group of twenty: 43 is in 40-59."""
    with contextlib.suppress(ValueError, OverflowError):
        first = int(float(age)) // 20 * 20
        return f"{first}-{first + 19}" if first < 80 else "80 and more"
    return ""


@dataclasses.dataclass(frozen=True)
class _Generated:
    """What is read of a line of `manifest.jsonl`."""

    file_name: str | None = None
    prompt: str = ""
    asked: tuple[Finding, ...] | None = None
    denied: tuple[str, ...] = ()
    effusion: str | None = None
    labels: tuple[str, ...] | str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | float | int | None = None
    race: str | None = None


def _samples(folder: Path) -> list[Item]:
    """What `jaxcxr sample` wrote, in the manifest's order."""
    manifest, items = folder / MANIFEST, []
    remedy = "give a folder of `jaxcxr sample`"
    rows: Iterable[_Generated] = parsing.read_lines(manifest, _Generated, remedy=remedy, most=MOST_BYTES)
    for number, row in enumerate(rows, 1):
        where = f"{manifest}: image {number}"
        if row.file_name is None:
            raise UserError(f"{where} has no file_name; sample again")
        file, asked = inside(folder, row.file_name), _asked(row, where)
        labels = (row.labels,) if isinstance(row.labels, str) else row.labels
        said = _labels(asked) if labels is None else labels or (_NO_LABEL,)
        known = {key: str(value) for key in PERSON if (value := getattr(row, key)) is not None}
        groups = {"view": (row.view,) if row.view else (), "label": said, **_person(known)}
        items.append(Item(functools.partial(_from_file, file), _stamp(file), str(file), row.prompt, groups, asked))
    if not items:
        raise UserError(f"{manifest}: lists no images; sample again")
    return items


def _asked(row: _Generated, where: str) -> Asked | None:
    """What a manifest's line says was asked for; its field `effusion` alone, as in older ones, says it too."""
    if row.asked is not None:
        return Asked(row.asked, row.denied).check(where)
    if not row.effusion:
        return None
    if row.effusion not in EFFUSIONS:
        raise UserError(f"{where} has effusion {row.effusion[:20]!r}; it is one of {', '.join(EFFUSIONS)}")
    return asked_effusion(row.effusion)


def _labels(asked: Asked | None) -> tuple[str, ...]:
    if asked is None:
        return ()
    return tuple(dict.fromkeys(finding.kind for finding in asked.findings)) or (_NO_LABEL,)


@dataclasses.dataclass(frozen=True)
class _Truth:
    """What is read of a line of a phantom tree's truth."""

    subject_id: int
    study_id: int
    dicom_id: str
    findings: tuple[Finding, ...]
    split: str = ""


def phantom_seed(folder: Path) -> int | None:
    """The seed that a phantom tree was drawn from; None if the folder is not a phantom tree.

    Raises:
      UserError: the tree's settings are damaged.
    """
    if not (folder / TRUTH).is_file():
        return None
    seed = read_settings(folder).settings.get("seed")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"{folder / SETTINGS}: has no seed of 0 or more; write the phantoms again")
    return seed


def _phantoms(folder: Path) -> list[Item]:
    """The phantoms of a tree that no model is trained on, with their truth."""
    truth, items = folder / TRUTH, []
    rows: Iterable[_Truth] = parsing.read_lines(truth, _Truth, remedy="write the phantoms again", most=MOST_BYTES)
    for row in rows:
        if row.split == "train":
            continue
        study = f"p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}"
        file = inside(folder, f"files/{study}/{row.dicom_id}.jpg")
        asked = _shown(row.findings, truth)
        items.append(
            Item(
                functools.partial(_from_file, file),
                _stamp(file),
                str(row.subject_id),
                _findings_text(row.findings),
                {"label": _labels(asked)},
                asked,
            )
        )
    if not items:
        raise UserError(f"{truth}: lists no images but those to train on; write the phantoms again, of more patients")
    return items


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
    return ", ".join(said) or _NO_LABEL
