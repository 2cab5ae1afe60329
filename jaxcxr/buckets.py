"""Folders on `gs://` and `s3://`, without a mount: paths with pathlib's methods, and what makes them whole and held.

An object appears whole or not at all, by one request. A folder is a prefix, which cannot be renamed, so it is whole
when the object `.complete` is in it, written last. Listings are asked for each time and never kept. A folder is held
for one job by the object `.lock`, which only one writer can create and which its writer renews.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError, one_line

COMPLETE, LOCK, IDENTITY = ".complete", ".lock", ".identity"
_ADDRESS = re.compile(r"(gs|s3)://([^/]+)(/.*)?")
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # by scheme: the package, and the extra that has it
_RENEWED, _STALE = 15.0, 45.0  # seconds: a lock is renewed so often; one that is not for so long is of a job that died


def place(text: str | Path) -> Path:
    """The path that a text means: `gs://bucket/folder` and `s3://bucket/folder` of a bucket, all else of this machine.

    A bucket's path has the methods of pathlib's that files and folders need; `holds` tells it apart.

    Raises:
      UserError: the package that reads such buckets is not installed, or the address names no folder in a bucket.
    """
    if holds(text) or "://" not in str(text):
        return Path(text) if isinstance(text, str) else text
    found = _ADDRESS.fullmatch(str(text).strip())
    if not found:
        raise UserError(f"{text}: is no address of a folder; it may be gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or local")
    package, extra = _PACKAGES[found[1]]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{text}: needs the package {package}; type pip install 'jaxcxr[{extra}]'")
    if not (found[3] or "").strip("/"):
        raise UserError(f"{text}: names a bucket alone; give a folder in it, as {str(text).strip().rstrip('/')}/FOLDER")
    return _paths()(found[0].rstrip("/"))


def output(text: str | Path) -> Path:
    """`place` of what is to be written, on this machine or on `gs://`.

    Raises:
      UserError: as `place`, or the address is of `s3://`, which Orbax does not write.
    """
    path = place(text)
    if holds(path) and not str(path).startswith("gs://"):
        raise UserError(f"{path}: is read, not written; write to gs://BUCKET/FOLDER or to a folder of this machine")
    return path


def holds(path: object) -> bool:
    """Whether a path is in a bucket."""
    return getattr(path, "in_bucket", False)


@functools.cache
def _paths() -> Any:
    """The class of paths in buckets: Orbax takes them, as they are of epath's."""
    import fsspec
    from etils import epath

    for scheme in ("gcs", "gs", "s3"):  # other processes write: what was listed before is not what is there
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False

    class BucketPath(type(epath.Path("gs://bucket/folder"))):  # type: ignore[misc]
        in_bucket = True

        @property
        def _files(self) -> Any:
            return self._backend.fs(str(self))

        def absolute(self) -> Any:
            return self

        def resolve(self, strict: bool = False) -> Any:
            return self

        def is_symlink(self) -> bool:
            return False

        def is_file(self) -> bool:
            try:
                return self._files.info(str(self))["type"] == "file"
            except FileNotFoundError:
                return False

        def iterdir(self) -> Iterator[Any]:
            for each in self._files.ls(str(self), detail=False):
                if (name := each.rstrip("/").rpartition("/")[2]) != self.name or not each.endswith("/"):
                    yield self / name

        def size(self) -> int:
            return int(self._files.info(str(self))["size"])

        def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, **_: Any) -> Any:
            if "r" not in mode:
                raise ValueError(f"{self}: is written by write_bytes, at once")
            return self._files.open(str(self), mode, **({} if "b" in mode else {"encoding": encoding or "utf-8"}))

        def read_bytes(self) -> bytes:
            return self._files.cat_file(str(self))

        def write_bytes(self, data: bytes) -> int:
            self._files.pipe_file(str(self), data)
            return len(data)

        def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
            return self.write_bytes(data.encode(encoding or "utf-8"))

        def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
            self.write_bytes(b"")

        def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
            pass  # a folder is there with the first object in it

        def chmod(self, mode: int) -> None:
            pass  # who may read a bucket is the bucket's own matter

    return BucketPath


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of all objects under a folder of a bucket, by their path in it; empty if there are none."""
    found = folder._files.find(str(folder), detail=True)  # type: ignore[attr-defined]
    prefix = str(folder).partition("://")[2] + "/"
    return {name.removeprefix(prefix): int(about["size"]) for name, about in sorted(found.items())}


def download(source: Path, target: Path) -> None:
    """Copies an object to a new file of this machine."""
    source._files.get_file(str(source), str(target))  # type: ignore[attr-defined]


def upload(source: Path, target: Path) -> None:
    """Copies a file of this machine to an object, which appears whole."""
    target._files.put_file(str(source), str(target))  # type: ignore[attr-defined]


def remove(path: Path) -> None:
    """Removes an object, or all under a folder; its marker first, so that it is not whole any more."""
    (path / COMPLETE).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)  # type: ignore[attr-defined]


def is_complete(folder: Path) -> bool:
    """Whether a folder of a bucket has its marker."""
    return (folder / COMPLETE).is_file()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields `path` to write in; the marker is written when the block ends well, all is removed otherwise."""
    with explained(path):
        if is_complete(path):
            raise UserError(f"{path}: exists already; name a new folder or remove this one")
        remove(path)  # what an interrupted writer left
        try:
            yield path
        except BaseException:
            with contextlib.suppress(OSError):
                remove(path)
            raise
        (path / COMPLETE).write_bytes(b"")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a name on this machine to write, which is uploaded when the block ends well."""
    with explained(path):
        if path.is_file():
            raise UserError(f"{path}: exists already; name a new file or remove this one")
        with tempfile.TemporaryDirectory(prefix="jaxcxr-") as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields a name on this machine to write: `path`, or of a bucket one that replaces it when the block ends well."""
    if not holds(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxcxr-") as folder:
        yield Path(folder) / path.name
        with explained(path):
            upload(Path(folder) / path.name, path)


@contextlib.contextmanager
def begun_folder(path: Path, identity: str) -> Iterator[Path]:
    """Yields `path`, held for this job, with what an interrupted block of the same identity left; then marks it.

    Raises:
      UserError: it is whole already, was begun with another identity, is held, or cannot be written.
    """
    with held(path), explained(path):
        if is_complete(path):
            raise UserError(f"{path}: exists already; name a new folder or remove this one")
        begun = (path / IDENTITY).read_bytes().decode() if (path / IDENTITY).is_file() else ""
        if begun != identity and sizes(path).keys() - {LOCK}:
            raise UserError(
                f"{path}: was begun with other settings; run it with those to finish it, name another --out, or type"
                f" gcloud storage rm --recursive {path}"
            )
        (path / IDENTITY).write_bytes(identity.encode())
        yield path
        (path / COMPLETE).write_bytes(b"")
        (path / IDENTITY).unlink()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises UserError, which says what to type, where a bucket is absent or denies permission.

    Neither fsspec nor TensorStore have an error of their own for these.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if not holds(path) or isinstance(error, FileExistsError):
            raise
        said, (scheme, bucket) = str(error), str(path).split("/")[0:3:2]
        if re.search(r"Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|Access Denied|\b40[13]\b", said):
            remedy = (
                f"type gcloud storage buckets add-iam-policy-binding gs://{bucket} --role=roles/storage.objectUser"
                " --member=serviceAccount:ACCOUNT"
                if scheme == "gs:"
                else f"give this account read and write access to s3://{bucket}"
            )
            raise UserError(f"{path}: permission is denied by the bucket ({_short(said)}); {remedy}") from error
        if re.search(r"bucket does not exist|NoSuchBucket", said) or _is_absent(path):
            make = "gcloud storage buckets create gs://" if scheme == "gs:" else "aws s3 mb s3://"
            raise UserError(
                f"{path}: there is no bucket {bucket!r}; type {make}{bucket}, or correct the name"
            ) from error
        raise


def check(path: Path) -> None:
    """Raises UserError where the bucket of a path is absent or may not be listed."""
    if holds(path):
        with explained(path), contextlib.suppress(FileNotFoundError):
            path._files.ls(str(path), detail=False)  # type: ignore[attr-defined]
        with explained(path):
            if _is_absent(path):
                raise FileNotFoundError("bucket does not exist")


def _is_absent(path: Path) -> bool:
    """Whether a path's bucket is absent: a missing object and a missing bucket give the same error elsewhere."""
    try:
        path._files.ls(str(path).split("/")[2], detail=False)  # type: ignore[attr-defined]
    except FileNotFoundError:
        return True
    except OSError:  # denied
        return False
    return False


def _short(said: str) -> str:
    return one_line(said.splitlines()[-1] if said.splitlines() else said)[:120]


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder of a bucket for this job, by an object that one writer alone can create, and renews.

    A lock whose job is gone is taken: at once where the job was a process of this machine, after 45 seconds without
    renewal otherwise. A job whose lock was taken ends at once, with a line: it would write beside another.

    Raises:
      UserError: another job has it, or the bucket is absent or denies permission.
    """
    with explained(folder):
        store = _store(folder)
        generation = _take(folder, store)
    ended = threading.Event()

    def renew() -> None:
        nonlocal generation
        while not ended.wait(_RENEWED):
            with contextlib.suppress(ValueError, OSError):  # the network: the next renewal may get through
                written = store.write(LOCK, _content(), if_equal=generation).result().generation
                if not written:
                    print(f"jaxcxr: {folder}: was taken by another job; this one ends", file=sys.stderr, flush=True)
                    os._exit(1)
                generation = written

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(ValueError, OSError):
            store.write(LOCK, None, if_equal=generation).result()


def _store(folder: Path) -> Any:
    import tensorstore

    bucket, _, name = str(output(folder)).removeprefix("gs://").partition("/")
    return tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket, "path": f"{name}/"}).result()


def _take(folder: Path, store: Any) -> bytes:
    """Writes the lock where there is none, or its job is gone; returns its generation."""
    found = store.read(LOCK).result()
    if found.state != "missing" and not _is_gone(found.value):
        print(f"{folder}: has a lock; waiting {_STALE:.0f} s to see if its job is at work", file=sys.stderr, flush=True)
        end, seen = time.monotonic() + _STALE, found.stamp.generation
        while time.monotonic() < end and found.stamp.generation == seen:
            time.sleep(min(1.0, _STALE / 10))
            found = store.read(LOCK).result()
        if found.state != "missing" and found.stamp.generation != seen:
            raise UserError(f"{folder}: another process is writing it")
    generation = store.write(LOCK, _content(), if_equal=found.stamp.generation).result().generation
    if not generation:
        raise UserError(f"{folder}: another process is writing it")
    return generation


def _content() -> bytes:
    about = {"host": socket.gethostname(), **_process(os.getpid()), "renewed": uuid.uuid4().hex}
    return json.dumps(about).encode()


def _process(number: int) -> dict[str, str]:
    """What tells a process of this machine from all others; empty if it is gone."""
    try:
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"pid": str(number), "started": started, "boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except (OSError, IndexError):
        return {}


def _is_gone(lock: bytes) -> bool:
    """Whether a lock is of a process of this machine that has ended; of another machine's nothing is known."""
    try:
        about: dict[str, str] = json.loads(lock)
        own = _process(os.getpid())
        here = bool(own) and all(about.get(key) == own[key] for key in ("boot", "namespace"))
        return here and _process(int(about["pid"])).get("started") != about["started"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


class Spool:
    """Files that grow, as metrics and event files, which a bucket cannot append to.

    On this machine's disk they are written where they belong. Of a bucket they are written in a temporary folder, and
    `push` uploads those that have changed, whole.

    Attributes:
      folder: where to write.
    """

    def __init__(self, target: Path):
        """For the files of the folder `target`."""
        self._target, self._pushed, self._last = target, dict[Path, int](), time.monotonic()
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxcxr-") if holds(target) else None
        self.folder = Path(self._temporary.name) if self._temporary else target

    def push(self, every: float = 0.0) -> None:
        """Uploads what has changed since the last time, unless that was less than `every` seconds ago."""
        if self._temporary is None or time.monotonic() - self._last < every:
            return
        self._last = time.monotonic()
        for file in sorted(each for each in self.folder.rglob("*") if each.is_file()):
            if (size := file.stat().st_size) != self._pushed.get(file):
                upload(file, self._target / file.relative_to(self.folder).as_posix())
                self._pushed[file] = size

    def close(self) -> None:
        """Uploads the rest, and removes the temporary folder."""
        self.push()
        if self._temporary is not None:
            self._temporary.cleanup()
