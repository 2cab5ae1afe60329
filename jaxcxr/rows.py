"""The rows of a sampling job, however many: each is read from the prompts file when it is asked for."""

import array
import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import msgspec

from jaxcxr import parsing, requests
from jaxcxr.data.tables import bounded_lines
from jaxcxr.errors import UserError
from jaxcxr.requests import MOST_SEED, Request

T = TypeVar("T")
MOST_PICTURES = 2**31 - 1  # of a job; larger numbers are of other keys (`draw.picture_keys`)
_ENCODER = msgspec.json.Encoder()
_BOM = b"\xef\xbb\xbf"
_REMEDY = 'each line is a JSON object with a `prompt` string, such as {"prompt": "No acute process."}'
_MOST_PIPED = 2**30  # bytes of a prompts file that is a pipe
_REMEMBERED = 100_000  # sets of files that are not named again


class Lines(Sequence[dict[str, Any]]):
    """The rows of a prompts file: a text file with one prompt a line, or JSON lines with the fields of `Request`.

    A line ends at a line feed, with or without a carriage return before it, and at nothing else. The lines of an
    earlier manifest are drawn with the seed of the new job. Memory holds where each line begins and ends.
    """

    def __init__(self, file: Path):
        """Raises UserError where the file cannot be read, a line is longer than a MiB, or there is no prompt."""
        self._name, self._json = str(file), file.suffix == ".jsonl"
        # Of each row: its first byte, its size, and the number of its line.
        self._starts, self._sizes, self._numbers = array.array("q"), array.array("l"), array.array("l")
        try:
            with _seekable(file) as opened:
                end = 0
                for number, line in enumerate(bounded_lines(opened, file), 1):
                    end += len(line)
                    content = line.removeprefix(_BOM) if number == 1 else line
                    if content.strip() and (self._json or self._text(content).strip()):
                        self._starts.append(end - len(content))
                        self._sizes.append(len(content))
                        self._numbers.append(number)
                self._descriptor = os.dup(opened.fileno())
            weakref.finalize(self, os.close, self._descriptor)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        if not self._starts:
            raise UserError(f"{file}: has no prompts")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        """The row at a place; raises UserError if it is no JSON object."""
        line = os.pread(self._descriptor, self._sizes[place], self._starts[place])
        if not self._json:
            return {"prompt": self._text(line).strip()}
        row: dict[str, Any] = parsing.parse_json(line, dict, self.where(place), remedy=_REMEDY)
        if row.get("synthetic") is True:
            row.pop("seed", None)
        return row

    def where(self, place: SupportsIndex) -> str:
        """The file and the number of the line, for errors."""
        return f"{self._name}: line {self._numbers[place]}"

    def _text(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name}: is not UTF-8; give a UTF-8 text file of prompts") from error


class Rows:
    """What a job draws, by the picture's number: its row of the manifest and its request.

    A row of the prompts with a `count` is that many pictures; where it has a `seed` too, they have the following ones.
    """

    def __init__(self, prompts: Sequence[Mapping[str, Any]], given: Mapping[str, Any] | None = None):
        """Checks each row.

        Args:
          prompts: `Lines`, or rows in memory.
          given: fields for the rows that lack them.

        Raises:
          UserError: as `requests.parse`, with the row's place; or there are more than `MOST_PICTURES`.
        """
        self._prompts, self._given = prompts, given or {}
        self._ends, self._forms = array.array("q"), array.array("l")
        self._first: list[int] = []  # by form, the place of a prompt of it
        known: dict[tuple[Any, ...], int] = {}
        digest, end = hashlib.blake2b(digest_size=16), 0
        for place in range(len(prompts)):
            row, request = self._read(place)
            end += request.count or 1
            self._ends.append(end)
            if (form := known.setdefault(request.form, len(known))) == len(self._first):
                self._first.append(place)
            self._forms.append(form)
            digest.update(_ENCODER.encode(row))
        if end > MOST_PICTURES:
            raise UserError(f"the prompts ask for {end:,} pictures; a job may have {MOST_PICTURES:,}")
        self.digest = digest.hexdigest()

    @classmethod
    def of(cls, prompts: "Rows | Sequence[Mapping[str, Any]]") -> "Rows":
        """The rows of prompts, which may be rows already."""
        return prompts if isinstance(prompts, Rows) else cls(prompts)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> tuple[dict[str, Any], Request]:
        """A picture's row, without `count` and nulls, and its request."""
        place = bisect.bisect_right(self._ends, range(len(self))[number])
        return self._copy(*self._read(place), number - (self._ends[place - 1] if place else 0))

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Request]]:
        for place in range(len(self._prompts)):
            row, request = self._read(place)
            for copy in range(request.count or 1):
                yield self._copy(row, request, copy)

    def each(self, of: Callable[[Request], T]) -> Iterator[T]:
        """`of(request)` for each picture, where that depends on the form of a request alone; it is called once a form.

        Raises:
          UserError: what `of` raises.
        """
        found = [of(self._read(place)[1]) for place in self._first]
        begin = 0
        for form, end in zip(self._forms, self._ends, strict=True):
            yield from itertools.repeat(found[form], end - begin)
            begin = end

    def with_files(self) -> Iterator[tuple[str, Request]]:
        """Each set of files that pictures are drawn from, as where it is named first and the request."""
        if not any(self._read(place)[1].files() for place in self._first):
            return
        seen: set[tuple[str, ...]] = set()
        for place in range(len(self._prompts)):
            request = self._read(place)[1]
            if (names := tuple(request.files())) and names not in seen:
                if len(seen) < _REMEMBERED:
                    seen.add(names)
                yield self._where(place), request

    def _read(self, place: int) -> tuple[dict[str, Any], Request]:
        """The row of the prompts at a place, and its request with its `count`."""
        row: Mapping[str, Any] = self._prompts[place]
        if self._given:
            said = {key: value for key, value in row.items() if value is not None or key not in self._given}
            row = {**self._given, **said}
        return dict(row), requests.parse(row, self._where(place))

    def _where(self, place: int) -> str:
        return self._prompts.where(place) if isinstance(self._prompts, Lines) else f"prompt {place + 1}"

    @staticmethod
    def _copy(row: Mapping[str, Any], request: Request, copy: int) -> tuple[dict[str, Any], Request]:
        fields = Request.__dataclass_fields__
        own = {key: value for key, value in row.items() if key not in fields or (value is not None and key != "count")}
        if request.seed is None:
            return own, dataclasses.replace(request, count=None) if request.count else request
        seed = (request.seed + copy) % (MOST_SEED + 1)
        return own | {"seed": seed}, dataclasses.replace(request, seed=seed, count=None)


def _seekable(file: Path) -> Any:
    """The file, open; a copy that has no name where it is a pipe."""
    opened = file.open("rb")
    if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        return opened
    with opened, contextlib.ExitStack() as held:
        copy = held.enter_context(tempfile.TemporaryFile())
        for _ in range(_MOST_PIPED // 2**20):
            copy.write(opened.read(2**20))
        if opened.read(1):
            raise UserError(f"{file}: gives more than {_MOST_PIPED / 2**20:g} MiB; write it to a file first")
        copy.seek(0)
        held.pop_all()  # the caller closes it
    return copy
