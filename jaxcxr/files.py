"""Folders and files that appear whole or not at all."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxcxr.errors import UserError

_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(//?)")


def check_local(path: object, what: str = "") -> None:
    """Raises UserError where a path is an address such as `gs://bucket/folder`; `what`, before it, says whose it is."""
    found = _URL.match(str(path)) if isinstance(path, str | Path) else None
    if found and (found[2] == "//" or isinstance(path, Path)):  # a Path has made one slash of two
        rest = str(path)[found.end() :]
        raise UserError(
            f"{what}{found[1]}://{rest}: only files and folders of this machine are read and written;"
            " mount the bucket or download it, and give the local path"
        )


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty sibling of `path` that takes its name when the block ends well and vanishes otherwise.

    Raises:
      UserError: `path` exists, or it cannot be written, for its parent's sake or the disk's.
    """
    path = Path(path)
    _require_new(path)
    with _sibling(path) as partial:
        partial.mkdir()
        yield partial


@contextlib.contextmanager
def begun_folder(path: Path, identity: str) -> Iterator[Path]:
    """Yields a hidden sibling of `path` that takes its name when the block ends well.

    What an interrupted block leaves in it is there again for the next one of the same `identity`.

    Raises:
      UserError: `path` exists, another process is at it, it was begun with another identity, or it cannot be written.
    """
    _require_new(path)
    partial = path.with_name(f".{path.name}.partial")
    mark = partial / ".identity"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with mark.open("a+") as file:
            lock(file, path)
            file.seek(0)
            if (begun := file.read()) not in ("", identity):
                raise UserError(f"{partial}: was begun with other settings: finish it with those, or remove it")
            if not begun:
                file.write(identity)
                file.flush()
            yield partial
        partial.replace(path)
        (path / mark.name).unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); run it again to go on") from error


def lock(file: IO[str], path: Path) -> None:
    """Locks an open file until it is closed, or its process is gone; `path` is what it stands for.

    Raises:
      UserError: another process has it locked.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is writing it") from error
    except OSError:  # a file system without locks
        return


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps a folder, made if it is not there, for this process alone, by a lock on the hidden file in it.

    Raises:
      UserError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    with file:
        lock(file, folder)
        yield


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields the name of a sibling of `path` to write, as `new_folder` does.

    Raises:
      UserError: as `new_folder`.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; name a new file or remove this one")
    with _sibling(path) as partial:
        yield partial


def _require_new(path: Path) -> None:
    if not path.name:
        raise UserError(f"{path}: is no name of a new folder; give one")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; name a new folder or remove this one")


@contextlib.contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        _remove(partial)
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was left there") from error
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    """Removes a file or folder as far as it can be, also what a failed writer's other threads add in the meantime."""
    for _ in range(30):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # of a parent that cannot be entered
                path.unlink(missing_ok=True)
        time.sleep(0.1)
        if not os.path.lexists(path):
            return


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or stays as it was, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
