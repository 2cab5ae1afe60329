"""Files of records (ArrayRecord): written whole or not at all, read in any order."""

import dataclasses
import math
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from jaxcxr.data import stage
from jaxcxr.errors import UserError
from jaxcxr.files import new_file

_OTHERS = 256  # files that a process may have open besides


def write(file: Path, records: Iterable[bytes], *, packed: bool) -> None:
    """Writes a new file, each record of which can be read alone.

    Args:
      file: to write.
      records: its content.
      packed: smaller, but slower to read.

    Raises:
      UserError: it exists, or it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with new_file(file) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1" + ("" if packed else ",uncompressed"))
        for record in records:
            _told(file, writer.write, record)
        _told(file, writer.close)


def _told(file: Path, call: Any, *args: Any) -> None:
    try:
        call(*args)
    except RuntimeError as error:  # of a full disk, among others
        raise UserError(f"{file}: cannot be written ({str(error).splitlines()[0]}); run it again to resume") from error


def _placed(file: Any) -> Any:
    """The same file where it is to be read: in its bucket, if it was left there; raises UserError if it is absent."""
    place = stage.where(name := getattr(file, "filename", file))
    if place is None:
        raise UserError(f"{name}: cannot be read (no such file); copy it again, or make it again")
    if place == str(name):
        return file
    return dataclasses.replace(file, filename=place) if hasattr(file, "filename") else place


class Files(Sequence[bytes]):
    """The records of several files, in their order; each is checked by its hash: a damaged one is never read."""

    def __init__(self, files: Sequence[Any]):
        """Opens paths, or what TFDS calls file instructions, which tell the numbers of records beforehand.

        Raises:
          UserError: this process may not have so many files open, or one is damaged or absent.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # Each stays open: the files of all of MIMIC-CXR are more than a process may have open by default.
        needed = len(files) + _OTHERS
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < needed:
            if hard != resource.RLIM_INFINITY and hard < needed:
                raise UserError(f"{len(files)} files of records are more than may be open here: ulimit -Hn {needed}")
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        files = [_placed(file) for file in files]  # now, not at the batch that wants it
        self._files, self._open = files, ArrayRecordDataSource
        try:
            self._records = ArrayRecordDataSource(files)
        except RuntimeError as error:
            raise self._unreadable(error, math.inf) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: SupportsIndex) -> bytes:  # type: ignore[override]
        """A record; raises UserError if its file is damaged there, or absent."""
        place = range(len(self))[place]
        try:
            return self._records[place]
        except RuntimeError as error:
            raise self._unreadable(error, place) from error

    def _unreadable(self, error: RuntimeError, place: float) -> UserError:
        """The error at a record, or beyond all of them of a file that cannot be opened; ArrayRecord names neither."""
        for file in self._files:
            try:
                place -= len(self._open([file]))
            except RuntimeError:
                place = -1
            if place < 0:
                break
        name = getattr(file, "filename", file)
        return UserError(f"{name}: cannot be read ({str(error).splitlines()[0]}); copy it again, or make it again")
