"""The key of a study: what each item truly is. It never travels with the study."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.readers.tasks import ABSENT, PRESENT, REAL, SYNTHETIC, TASKS

FORMAT = "jaxcxr readers 1"
_REMEDY = "give the key that `jaxcxr readers make` wrote"


@dataclasses.dataclass(frozen=True)
class Truth:
    """What an item is.

    Attributes:
      task: a name of `TASKS`.
      sets: the set of its image, or of the left and the right one.
      sources: which images of the sets they are, to find them again.
      images: their names in the study.
      expected: the answer that is right, of tasks that have one.
      finding: what is asked for, of the task `finding`.
      repeat_of: the item that this one repeats, with the sides of a pair exchanged.
    """

    task: str
    sets: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]
    sources: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    expected: str = ""
    finding: str = ""
    repeat_of: str = ""


@dataclasses.dataclass(frozen=True)
class Key:
    """A study's key.

    Attributes:
      format: `FORMAT`.
      study: the study's id, a digest of its items and images; each line of answers has it.
      sets: by name, real or synthetic.
      readers: the codes of the readers.
      items: by id.
      settings: what the study was made with.
      notes: what was done to the images, and what tells the classes apart.
    """

    format: str
    study: str
    sets: Mapping[str, str]
    readers: tuple[str, ...]
    items: Mapping[str, Truth]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def to_json(key: Key) -> bytes:
    """The content of a key file."""
    return parsing.to_json(dataclasses.asdict(key))


def read(path: Path) -> Key:
    """Reads a key file.

    Raises:
      UserError: it cannot be read, is no key, or says what cannot be.
    """
    key: Key = parsing.read_json(path, Key, remedy=_REMEDY)
    if key.format != FORMAT:
        raise UserError(f"{path}: is of format {key.format[:40]!r}, not {FORMAT!r}; {_REMEDY}")
    if wrong := next((name for name, kind in key.sets.items() if kind not in (REAL, SYNTHETIC)), None):
        raise UserError(f"{path}: the set {wrong[:40]!r} is neither {REAL} nor {SYNTHETIC}; {_REMEDY}")
    for name, item in key.items.items():
        if said := _wrong(key, item):
            raise UserError(f"{path}: item {name[:40]!r} {said}; {_REMEDY}")
    return key


def _wrong(key: Key, item: Truth) -> str:
    """Why an item cannot be; empty where it can."""
    if item.task not in TASKS:
        return f"has the task {item.task[:40]!r}; there are {', '.join(TASKS)}"
    if len(item.sets) != TASKS[item.task].images or any(name not in key.sets for name in item.sets):
        return "is of sets that the key does not have"
    expected = {"real": (REAL, SYNTHETIC), "finding": (PRESENT, ABSENT)}.get(item.task, ("",))
    if item.expected not in expected:
        return f"expects {item.expected[:40]!r}; it may be {' or '.join(map(repr, expected))}"
    original = key.items.get(item.repeat_of)
    if item.repeat_of and (original is None or original.task != item.task or original.repeat_of):
        return f"repeats {item.repeat_of[:40]!r}, which is no item of its task"
    return ""
