"""Folders on `gs://` and `s3://`, without a mount: paths with pathlib's methods, and what makes them whole and held.

An object appears whole or not at all, by one request. A folder is a prefix, which cannot be renamed, so it is whole
when the object `.complete` is in it, written last. Listings are asked for each time and never kept.
"""

import contextlib
import functools
import importlib.util
import io
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError, one_line

COMPLETE = ".complete"
_ADDRESS = re.compile(r"(gs|s3)://([^/]+)(/.*)?")
_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(//?)")
_OF_HUB = re.compile(r"hf://|[a-z]+://(huggingface\.co|hf\.co)/")
_BY_NAME = "give the repository's name alone, as ORG/NAME"
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # by scheme: the package, and the extra that has it
_CLIENTS, _ERRORS = ("gcsfs", "s3fs", "aiohttp", "aiobotocore", "botocore", "google"), (OSError, ValueError)


def check_local(path: object, what: str = "") -> None:
    """Raises UserError where a path is an address such as `gs://bucket/folder`; `what`, before it, says whose it is."""
    found = _URL.match(str(path)) if isinstance(path, str | Path) else None
    if found and (found[2] == "//" or isinstance(path, Path)):  # a Path has made one slash of two
        address = f"{found[1]}://{str(path)[found.end() :]}"
        remedy = "mount the bucket or download it, and give the local path"
        if _OF_HUB.match(address):
            remedy = f"download it; where repositories of the hub are read, {_BY_NAME}"
        raise UserError(f"{what}{address}: only files and folders of this machine are read and written here; {remedy}")


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
        if _OF_HUB.match(str(text).strip()):
            raise UserError(f"{text}: is an address; {_BY_NAME}")
        raise UserError(f"{text}: is no address of a folder; it may be gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or local")
    if not (found[3] or "").strip("/"):
        raise UserError(f"{text}: names a bucket alone; give a folder in it, as {str(text).strip().rstrip('/')}/FOLDER")
    package, extra = _PACKAGES[found[1]]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{text}: needs the package {package}; type pip install 'jaxcxr[{extra}]'")
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
            file = io.BufferedReader(self._files.open(str(self), "rb"))  # whose `readline` takes a size
            return file if "b" in mode else io.TextIOWrapper(file, encoding or "utf-8")

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
def explained(path: Path) -> Iterator[None]:
    """Raises UserError, which says what to type, where a bucket is absent or denies permission.

    Neither fsspec nor TensorStore have an error of their own for these.
    """
    try:
        yield
    except Exception as error:
        of_a_client = type(error).__module__.partition(".")[0] in _CLIENTS
        if not holds(path) or isinstance(error, FileExistsError) or not (of_a_client or isinstance(error, _ERRORS)):
            raise
        said, (scheme, bucket) = str(error), str(path).split("/")[0:3:2]
        if re.search(r"Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|Access ?Denied", said):
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
        if of_a_client:
            raise UserError(f"{path}: the bucket does not answer ({one_line(error)[:120]}); run it again") from error
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
            try:
                if (size := file.stat().st_size) != self._pushed.get(file):
                    upload(file, self._target / file.relative_to(self.folder).as_posix())
                    self._pushed[file] = size
            except FileNotFoundError:
                if file.exists():  # it is the bucket that is absent
                    raise
                # A logger has removed a temporary file of its own meanwhile.

    def close(self) -> None:
        """Uploads the rest, and removes the temporary folder."""
        self.push()
        if self._temporary is not None:
            self._temporary.cleanup()
