"""Folders and files that appear whole or not at all, and who may read them.

What is being written is in a hidden folder beside its place, `.NAME.partial-XXXXXXXX/NAME`, and moves to its place when
it is whole. Its writer holds a lock in that folder, which the system drops with the process. So the next writer of the
same name can tell what an interrupted process left, and removes it. Where the file system has no locks nothing is
removed.

In a bucket nothing moves: an object appears whole, and a folder is whole when its marker is there (`buckets.py`,
`bucket_jobs.py`).

`private=True` is for what may hold data of patients. A new private folder has mode 0700, a new private file 0600. Other
files in a private folder have usual modes, so one `chmod` of the folder shares them. A folder that exists already keeps
its mode, its group and its access list, also an empty one whose place the output takes.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from jaxcxr import bucket_jobs, buckets
from jaxcxr.errors import UserError

_LOCK, _IDENTITY = ".writer", ".identity"


@contextlib.contextmanager
def new_folder(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends well and vanishes otherwise.

    Raises:
      UserError: `path` exists and is not an empty folder, or it cannot be written, for its parent's sake or the disk's.
    """
    path = buckets.place(path)
    if buckets.holds(path):
        with buckets.new_folder(path) as folder:
            yield folder
        return
    with _nothing_left(path):
        _require_new(path)
        with _partial(path) as partial:
            _make_like(partial, path, private)
            yield partial


@contextlib.contextmanager
def new_file(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yields a name to write that becomes `path` when the block ends well, as `new_folder` does.

    Raises:
      UserError: as `new_folder`.
    """
    path = buckets.place(path)
    if buckets.holds(path):
        with buckets.new_file(path) as file:
            yield file
        return
    with _nothing_left(path):
        if path.exists():
            raise UserError(f"{path}: exists already; name a new file or remove this one")
        with _partial(path) as partial:
            yield partial
            if private:
                partial.chmod(0o600)


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes a file that appears whole or stays as it was, with its folder; one that exists keeps its mode.

    Raises:
      OSError: it cannot be written.
    """
    if buckets.holds(path):
        with buckets.explained(path):
            path.write_bytes(data)
        return
    with _partial(path) as partial:
        partial.write_bytes(data)
        if os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode):
            shutil.copymode(path, partial)
        elif private:
            partial.chmod(0o600)


@contextlib.contextmanager
def begun_folder(path: Path, identity: str, *, private: bool = False, anew: bool = False) -> Iterator[Path]:
    """Yields a hidden sibling of `path` that takes its name when the block ends well.

    What an interrupted block leaves in it is there again for the next one of the same `identity`. What one of another
    identity left is removed if there is no file in it. If there is one, and `anew`, it is moved to `.NAME.partial.old`,
    with a line that says so; what was moved there before is removed.

    Raises:
      UserError: `path` exists, another process is at it, it was begun with another identity and not `anew`, a sibling's
        name is taken by something else, or it cannot be written.
    """
    if buckets.holds(path):
        with bucket_jobs.begun_folder(path, identity) as folder:
            yield folder
        return
    try:
        _require_new(path)
        partial = begun_at(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _make_like(partial, path, private)
        _require_begun(partial)
        with os.fdopen(os.open(partial / _IDENTITY, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
            lock(file, path)
            if (begun := file.read()) not in ("", identity):
                remove_unfinished(partial)
                if any(found.is_file() for found in partial.rglob("*") if found.name != _IDENTITY):
                    if not anew:
                        raise UserError(
                            f"{partial}: was begun with other settings; run it with those to finish it, name another"
                            " --out, or remove this folder"
                        )
                    old = _set_aside(partial, begun)
                    said = f"was begun with other settings or by another version; moved to {old}; starting again"
                    print(f"{partial}: {said}", file=sys.stderr)
                for left in partial.iterdir():
                    if left.name != _IDENTITY:
                        _remove(left)
            if begun != identity:
                file.seek(0)
                file.truncate()
                file.write(identity)
                file.flush()
            yield partial
        partial.replace(path)
        (path / _IDENTITY).unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); run it again to resume") from error


def begun_at(path: Path) -> Path:
    """Where `begun_folder` has what is to become `path`; the other processes of its job write there too."""
    return path if buckets.holds(path) else path.with_name(f".{path.name}.partial")


def make_folder(path: Path, *, private: bool = False) -> None:
    """Makes a folder, with those above it, unless it is there.

    Raises:
      OSError: it cannot be made.
    """
    path.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)


@contextlib.contextmanager
def locked_folder(folder: Path, *, private: bool = False) -> Iterator[None]:
    """Keeps a folder, made if it is not there, for this process alone, by a lock on the hidden file in it.

    Raises:
      UserError: another process has it, or it cannot be written.
    """
    if buckets.holds(folder):
        with bucket_jobs.held(folder):
            yield
        return
    try:
        make_folder(folder, private=private)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    with file:
        lock(file, folder)
        yield


def is_whole(folder: Path) -> bool:
    """Whether a folder that `new_folder` wrote is there."""
    return buckets.is_complete(folder) if buckets.holds(folder) else folder.is_dir()


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all in it, if it is there."""
    if buckets.holds(path):
        buckets.remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock(file: IO[str], path: Path) -> None:
    """Locks an open file until it is closed, or its process is gone; `path` is what it stands for.

    Raises:
      UserError: another process has it locked.
    """
    if _try_lock(file.fileno()) is False:
        raise UserError(f"{path}: another process is writing it")


@contextlib.contextmanager
def writing_place(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder in `folder`, where this process alone writes files that move up when they are whole.

    It is removed at the end; if the process is killed, `remove_unfinished` removes it.

    Raises:
      OSError: it cannot be made.
    """
    if buckets.holds(folder):
        with tempfile.TemporaryDirectory(prefix="jaxcxr-") as temporary:
            yield Path(temporary)
        return
    place, held = _hold(folder / "files")
    try:
        yield place
    finally:
        _remove(place)
        os.close(held)


def move_up(file: Path, folder: Path) -> None:
    """Moves a whole file from a `writing_place` of `folder` into that folder."""
    if buckets.holds(folder):
        with buckets.explained(folder):
            buckets.upload(file, folder / file.name)
        file.unlink()
    else:
        file.replace(folder / file.name)


def remove_unfinished(folder: Path, name: str | None = None, *, living: bool = False) -> None:
    """Removes what interrupted writers left in a folder, of the file or folder `name` there or of all.

    What a living process is writing stays, unless `living`. So does what cannot be removed, or is on a file system
    without locks.
    """
    if buckets.holds(folder):
        return  # where nothing is written under another name
    written = re.compile(rf"\.{re.escape(name) if name else '.+'}\.partial-[0-9a-f]{{1,8}}")
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = os.listdir(folder)
    for path in (folder / each for each in found if written.fullmatch(each)):
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
            if living:
                _remove(path)
            elif stat.S_ISDIR(mode):
                _remove_unlocked(path)
            elif stat.S_ISREG(mode):  # of an older version, which wrote files under these names
                path.unlink()


def missing(files: Sequence[Path]) -> list[int]:
    """The places of the files that are not there."""
    return [place for place, file in enumerate(files) if not file.is_file()]


def hub_blobs(folder: Path) -> list[Path]:
    """Where a snapshot of the Hugging Face Hub's cache, `…/snapshots/COMMIT`, has what its links lead to: `…/blobs`."""
    for each in (folder.absolute(), *folder.absolute().parents):
        if each.name == "snapshots" and (blobs := each.with_name("blobs")).is_dir():
            return [blobs.resolve()]
    return []


def inside(folder: Path, name: str) -> Path:
    """The regular file of the relative name `name` in a folder, links followed; but not those of the hub's cache.

    Raises:
      UserError: it is absent, is no regular file, or lies outside of the folder.
    """
    try:
        file = (folder / name).resolve()
        within = file.is_relative_to(folder.resolve())
        if Path(name).is_absolute() or not (within or any(map(file.is_relative_to, hub_blobs(folder)))):
            raise UserError(f"{folder}: names {name[:100]!r}, which lies outside of it; names are relative to it")
        if file.is_file():
            return file if within else folder / name  # a blob's own name has no suffix
    except (OSError, ValueError):  # ValueError: a null byte in the name
        pass
    raise UserError(f"{folder}: has no file {name[:100]!r}, though it is listed; write the folder again")


def _require_new(path: Path) -> None:
    if not path.name:
        raise UserError(f"{path}: is no name of a new folder; give one")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; name a new folder or remove this one")


def _make_like(folder: Path, place: Path, private: bool) -> None:
    """Makes the folder that will take `place`, with the mode, group and access list of the empty one there if any."""
    folder.mkdir(0o700 if private or place.is_dir() else 0o777)
    if place.is_dir():
        with contextlib.suppress(OSError):  # of a group that this user is not in
            os.chown(folder, -1, place.stat().st_gid)
        shutil.copystat(place, folder)


def _require_begun(partial: Path) -> None:
    """Raises UserError where a folder, a link or a file is in the way that `begun_folder` did not make."""
    empty = stat.S_ISDIR(partial.lstat().st_mode) and not any(partial.iterdir())
    begun = stat.S_ISDIR(partial.lstat().st_mode) and stat.S_ISREG(_mode(partial / _IDENTITY))
    if not (empty or begun):
        raise UserError(f"{partial}: is not a folder of an interrupted run; check it, then remove it")


def _set_aside(partial: Path, begun: str) -> Path:
    """Moves what a begun folder holds to another, with its identity, and returns that one.

    The folder itself stays: the lock is in it.
    """
    old = partial.with_name(f"{partial.name}.old")
    if os.path.lexists(old):
        _require_begun(old)
        _remove(old)
    _make_like(old, partial, private=False)
    (old / _IDENTITY).write_text(begun)
    for left in partial.iterdir():
        if left.name != _IDENTITY:
            left.replace(old / left.name)
    return old


def _mode(path: Path) -> int:
    """The mode of a file or link, 0 of none."""
    return path.lstat().st_mode if os.path.lexists(path) else 0


@contextlib.contextmanager
def _nothing_left(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was left there") from error


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yields the name to write in a locked hidden folder beside `path`; it moves there when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent, path.name)
    holder, held = _hold(path)
    try:
        yield holder / path.name
        (holder / path.name).replace(path)
    except BaseException:
        _remove(holder)
        raise
    else:
        shutil.rmtree(holder, ignore_errors=True)
    finally:
        os.close(held)


def _hold(path: Path) -> tuple[Path, int]:
    """Makes a hidden folder beside `path` and the file in it that is locked as long as it is open."""
    while True:
        holder = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
        holder.mkdir(0o700)
        try:
            held = os.open(holder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # another process took it, unlocked yet, for an interrupted one's
            continue
        if _try_lock(held) is not False and os.path.lexists(holder / _LOCK):
            return holder, held
        os.close(held)


def _try_lock(file: int) -> bool | None:
    """Whether the lock was free, which is then held; None on a file system without locks."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_unlocked(holder: Path) -> None:
    """Removes the hidden folder of a writer that is gone."""
    file = os.open(holder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if _try_lock(file):
            _remove(holder)
    finally:
        os.close(file)


def _remove(path: Path) -> None:
    """Removes a file or folder as far as it can be, also what a failed writer's other threads add in the meantime."""
    for _ in range(30):
        if stat.S_ISDIR(_mode(path)):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
            return
        time.sleep(0.1)
        if not os.path.lexists(path):
            return
