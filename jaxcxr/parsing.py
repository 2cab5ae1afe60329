"""Reads JSON that a user or a hub gives into checked types; whatever is wrong with it is a UserError of one line.

A format is a dataclass whose annotations say what its values may be: `Annotated[int, msgspec.Meta(ge=1)]` is a whole
number of 1 or more. Every JSON file that this package did not write a moment ago is read through here.

Never put a tuple of fixed length beside a number with bounds, as in `Count | tuple[int, int]`: msgspec 0.22 corrupts
memory. `Annotated[tuple[int, ...], msgspec.Meta(min_length=2, max_length=2)]` says the same.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jaxcxr.errors import UserError, one_line

T = TypeVar("T")
MOST_BYTES = 64 * 2**20  # of a JSON file; the largest tokenizers have a third of that


def read_json(
    path: Path, kind: type[T] | Any = Any, *, remedy: str = "", most: int = MOST_BYTES, nan: bool = False
) -> T:
    """Reads a JSON file of at most `most` bytes as `kind`; `nan` as for `parse_json`.

    Raises:
      UserError: it cannot be read, is too large, is not JSON in UTF-8, or a value is not what `kind` says.
    """
    return parse_json(read_bytes(path, most), kind, str(path), remedy=remedy, nan=nan)


def to_json(value: Any) -> bytes:
    """A value as the content of a JSON file for people to read too."""
    return (json.dumps(value, indent=2) + "\n").encode()


def parse_json(
    data: bytes | str, kind: type[T] | Any = Any, name: str = "JSON", *, remedy: str = "", nan: bool = False
) -> T:
    """Parses JSON as `kind`; `name` says in the error what it is, `remedy` what to do.

    With `nan` it may have NaN and Infinity, as Python writes them.

    Raises:
      UserError: it is not JSON in UTF-8, or a value is not what `kind` says.
    """
    try:
        if not nan:
            return msgspec.json.decode(data, type=kind)
        parsed = json.loads(data)
    except (msgspec.MsgspecError, UserError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _wrong(error, name, remedy) from error
    return convert(parsed, kind, name, remedy=remedy)


def convert(value: Any, kind: type[T] | Any, name: str, *, remedy: str = "") -> T:
    """Checks a value that is parsed already, as `parse_json` does.

    Raises:
      UserError: it is not what `kind` says.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, UserError, ValueError, RecursionError) as error:
        raise _wrong(error, name, remedy) from error


def read_lines(path: Path, kind: type[T] | Any = Any, *, remedy: str = "", most: int = MOST_BYTES) -> Iterator[T]:
    """Yields the values of a JSON Lines file of at most so many bytes; blank lines and a byte order mark are skipped.

    A line ends at a line feed alone: U+2028 and form feeds may stand inside a JSON string. Memory holds one line.

    Raises:
      UserError: as `read_json`, with the number of the line.
    """
    left = most
    with _reading(path), path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(left + 1)
            left -= len(line)
            if left < 0:
                raise _too_large(path, most)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield parse_json(line, kind, f"{path}: line {number}", remedy=remedy)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Reads a file of at most so many bytes.

    Raises:
      UserError: it cannot be read or is larger.
    """
    data = io.BytesIO()  # whose `getvalue` does not copy
    with _reading(path), path.open("rb") as file:
        # In parts, as `read` takes the memory of all that it is asked for beforehand.
        while data.tell() <= most and (part := file.read(2**20)):
            data.write(part)
    if data.tell() > most:
        raise _too_large(path, most)
    return data.getvalue()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _too_large(path: Path, most: int) -> UserError:
    return UserError(f"{path}: is larger than {most / 2**20:g} MiB, which no such file is")


def _wrong(error: Exception, name: str, remedy: str) -> UserError:
    if isinstance(error, RecursionError):
        why = "is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        why = "is not UTF-8"
    elif isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        why = f"not JSON ({error})"
    else:
        why = str(error).replace(" - at `$.", ", at `").replace(" - at `$", ", at `")
        why = one_line(why)
    return UserError(f"{name}: {why}{'; ' if remedy else ''}{remedy}")
