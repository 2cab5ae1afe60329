"""Reads JSON that a user or a hub gives into checked types; whatever is wrong with it is a UserError of one line.

A format is a dataclass whose annotations say what its values may be: `Annotated[int, msgspec.Meta(ge=1)]` is a whole
number of 1 or more. Every JSON file that this package did not write a moment ago is read through here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jaxcxr.errors import UserError

T = TypeVar("T")
MOST_BYTES = 64 * 2**20  # of a JSON file; the largest tokenizers have a third of that


def read_json(path: Path, kind: type[T] | Any = Any, *, remedy: str = "") -> T:
    """Reads a JSON file as `kind`.

    Raises:
      UserError: it cannot be read, is too large, is not JSON in UTF-8, or a value is not what `kind` says.
    """
    return parse_json(read_bytes(path), kind, str(path), remedy=remedy)


def parse_json(data: bytes | str, kind: type[T] | Any = Any, name: str = "JSON", *, remedy: str = "") -> T:
    """Parses JSON as `kind`; `name` says in the error what it is, `remedy` what to do.

    Raises:
      UserError: it is not JSON in UTF-8, or a value is not what `kind` says.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UserError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _wrong(error, name, remedy) from error


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

    A line ends at a line feed alone: U+2028 and form feeds may stand inside a JSON string.

    Raises:
      UserError: as `read_json`, with the number of the line.
    """
    for number, line in enumerate(read_bytes(path, most).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield parse_json(line, kind, f"{path}: line {number}", remedy=remedy)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Reads a file of at most so many bytes.

    Raises:
      UserError: it cannot be read or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > most:
        raise UserError(f"{path}: is larger than {most / 2**20:g} MiB, which no such file is")
    return data


def _wrong(error: Exception, name: str, remedy: str) -> UserError:
    if isinstance(error, RecursionError):
        why = "is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        why = "is not UTF-8"
    else:
        why = str(error).replace(" - at `$.", ", at `").replace(" - at `$", ", at `")
        why = " ".join(why.split())[:300]
    return UserError(f"{name}: {why}{'; ' if remedy else ''}{remedy}")
