"""Checksums of a checkpoint's files, in a file beside its items; neither Orbax nor TensorStore notice a changed bit."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxcxr import buckets, parsing
from jaxcxr.errors import UserError
from jaxcxr.files import replace_file

CHECKSUMS = "checksums.json"
_THREADS = 8
_AT_ONCE = 4 * 2**20  # bytes
_NOWHERE = 2**31 - 1  # the place of a damaged file among those of a step that is whole


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a file; of an object its size alone, as a bucket keeps checksums of its own."""

    size: int
    crc32: int | None = None


def write(step: Path) -> None:
    """Writes the checksums of all files of a step's items into its folder.

    What lies beside the items is left out: Orbax writes into it when the step is complete.
    """
    if buckets.holds(step):
        found = {name: Entry(size) for name, size in buckets.sizes(step).items() if "/" in name}
        _write(step, found)
        return
    names = sorted(file.relative_to(step).as_posix() for file in step.glob("*/**/*") if file.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        _write(step, dict(zip(names, pool.map(lambda name: _entry(step / name), names), strict=True)))


def _write(step: Path, entries: Mapping[str, Entry]) -> None:
    content = {name: dataclasses.asdict(entry) for name, entry in entries.items()}
    replace_file(step / CHECKSUMS, (json.dumps(content, indent=0) + "\n").encode())


def read(step: Path) -> Mapping[str, Entry] | None:
    """The checksums of a step, by file; None if it has none, as one that was made before there were any.

    Raises:
      UserError: the file is damaged.
    """
    file = step / CHECKSUMS
    return parsing.read_json(file, dict[str, Entry]) if file.is_symlink() or file.exists() else None


def damage(
    step: Path,
    items: Sequence[str] = (),
    *,
    part: tuple[int, int] = (0, 1),
    agree: Callable[[int], int] = int,
) -> str | None:
    """What is wrong with the files of a step, or of some of its items; None if nothing is or it has no checksums.

    Args:
      step: its folder.
      items: those wanted; all if empty.
      part: the number of this process and how many there are; each reads its part of the files.
      agree: gives all processes the least of their numbers. Each process calls it once, whatever it has read.
    """
    number, processes = part
    try:
        entries, unreadable = read(step) or {}, False
    except UserError:
        entries, unreadable = {}, True
    names = [name for name in sorted(entries) if not items or name.split("/")[0] in items]
    own = _first_damaged(step, entries, names[number::processes])
    place = agree(-1 if unreadable else _NOWHERE if own is None else number + own * processes)
    if place == _NOWHERE:
        return None
    if place < 0:
        return f"{CHECKSUMS} cannot be read"
    # A process whose checksums are older than another's may not have the name.
    return f"{names[place] if place < len(names) else 'a file'} is not as it was written"


def _first_damaged(step: Path, entries: Mapping[str, Entry], names: Sequence[str]) -> int | None:
    """The place among `names` of the first file that is not what its entry says; None if all are."""

    there = buckets.sizes(step) if buckets.holds(step) and names else {}

    def whole(name: str) -> bool:
        if buckets.holds(step):
            return there.get(name) == entries[name].size
        try:
            found, expected = _entry(step / name, entries[name].size), entries[name]
            return found == expected or (expected.crc32 is None and found.size == expected.size)
        except OSError:
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        return next((place for place, fine in enumerate(pool.map(whole, names)) if not fine), None)


def _entry(file: Path, expected: int | None = None) -> Entry:
    """The entry of a file; of one that is not of the expected size without reading it."""
    size, found = file.stat().st_size, 0
    if expected not in (None, size):
        return Entry(size, -1)
    with file.open("rb") as opened:
        while data := opened.read(_AT_ONCE):
            found = zlib.crc32(data, found)
    return Entry(size, found)
