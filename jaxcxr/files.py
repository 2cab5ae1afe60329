"""Folders and files that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxcxr.errors import UserError


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty sibling of `path` that takes its name when the block ends well and vanishes otherwise.

    Raises:
      UserError: `path` exists, or it cannot be written, for its parent's sake or the disk's.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; name a new folder or remove this one")
    with _sibling(path) as partial:
        partial.mkdir()
        yield partial


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


@contextlib.contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was left there") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # of a parent that cannot be entered
                partial.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or stays as it was, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
