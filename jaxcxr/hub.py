"""Repositories of the Hugging Face Hub by name: `ORG/NAME`, with `@REVISION` and `:FOLDER` or `:FILE` after it.

`find` gives the local folder of what any option names. A file or folder of that name here goes first. Only the files
that a reader opens are downloaded, by `huggingface_hub`: its cache, its progress bars, its locks (of several processes
of one host one downloads), its tokens. HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT and HF_TOKEN are its settings.
"""

import contextlib
import dataclasses
import errno
import functools
import glob
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxcxr import __version__, bases
from jaxcxr.errors import UserError, one_line

Kind = Literal["model", "dataset"]
Choose = Callable[[Sequence[str]], list[str]]
"""The names of all files of a repository, or of a folder of it -> those that a reader will open; raises Absent."""

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([^@:\s]+))?(?::([^:\s][^:]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST = 96  # characters of a repository's name
# What ends so is a file that is not here, unless it is named with a revision or as a part of a repository.
_FILES = frozenset(
    (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".msgpack", ".npy", ".npz", ".json", ".jsonl", ".csv", ".parquet")
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The libraries that huggingface_hub has its connections from, one or another by its version.
_CONNECTIONS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "h11")
_pinned_from: dict[tuple[str, str], str] = {}  # by repository and commit: the branch that `pinned` was given


class Absent(Exception):
    """A repository lacks what is asked of it; the message says what, and what to name instead."""


@dataclasses.dataclass(frozen=True)
class Name:
    """The name of a repository, or of a part of it.

    Attributes:
      repository: `ORG/NAME`.
      revision: a branch, a tag or a commit; empty for the main branch.
      inside: a folder or file of it; empty for all.
    """

    repository: str
    revision: str = ""
    inside: str = ""

    def __str__(self) -> str:
        revision, inside = self.revision and f"@{self.revision}", self.inside and f":{self.inside}"
        return f"{self.repository}{revision}{inside}"


@dataclasses.dataclass(frozen=True)
class _Repository:
    """What is known of a repository at a revision.

    Attributes:
      commit: of the revision.
      files: their names; of those in the cache where the hub is not asked.
      folder: of the cache, where the hub is not asked.
      why: the hub is not asked.
    """

    commit: str
    files: tuple[str, ...]
    folder: Path | None = None
    why: str = ""


def parse(text: str | Path) -> Name | None:
    """The name that a text is by its form; None if it is a path, an address or a file's name."""
    found = _NAME.fullmatch(str(text))
    if found is None:
        return None
    name = Name(found[1], found[2] or "", (found[3] or "").strip("/"))
    if len(name.repository) > _LONGEST or re.search(r"\.\.|--|[.-]/|[.-]$|\.git$", name.repository):
        return None
    if ".." in name.revision or (str(name) == name.repository and PurePosixPath(name.repository).suffix in _FILES):
        return None
    return name


def find(path: str | Path, choose: Choose, *, kind: Kind = "model") -> Path:
    """The folder or file that a name stands for, downloaded where it has to be.

    Args:
      path: a path; the name of a base that comes with the package; or that of a repository.
      choose: picks the files that are needed.
      kind: of the repository.

    Returns:
      `path` itself, the base's folder, or one of the hub's cache, `…/snapshots/COMMIT`, or a folder or file in it. A
      path that does not exist and is no name of a repository is returned as it is: its reader says so.

    Raises:
      UserError: there is no such repository, revision, folder or file; it may not be read; the hub cannot be reached
        and the cache lacks it; the disk is full.
    """
    path = bases.find(path)
    name = _named(path)
    if name is None:
        return path
    with _in_one_line(name, kind):
        repository = _look_up(name.repository, name.revision, kind)
    root, wanted = _chosen(name, repository, choose)
    with _in_one_line(name, kind, "the download"):
        return (repository.folder or _download(name, repository.commit, wanted, kind)) / root


def pinned(path: str | Path, before: str = "", *, kind: Kind = "model") -> str:
    """A name with the commit that its revision is at now, `ORG/NAME@COMMIT`; anything else as it is.

    Args:
      path: as for `find`.
      before: what this returned when the work began that is now resumed. A name without a revision stays at that
        commit, wherever the branch is now.
      kind: as for `find`.

    Raises:
      UserError: as `find`.
    """
    name, was = _named(path), parse(before)
    if name is None or _COMMIT.fullmatch(name.revision):
        return str(path)
    if was and not name.revision and (was.repository, was.inside) == (name.repository, name.inside):
        return before
    with _in_one_line(name, kind):
        commit = _look_up(name.repository, name.revision, kind).commit
    _pinned_from[name.repository, commit] = name.revision
    return str(dataclasses.replace(name, revision=commit))


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Uploads a folder as a commit to a model's repository, which is made where there is none; returns its address.

    Raises:
      UserError: `repository` is no name, nobody is logged in, the token may not write, the repository is public and
        `public` was not asked for, or the hub cannot be reached. What was uploaded before stays as it was.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    name, api = check_push(repository), _api()
    with _kept(folder, repository), _in_one_line(name, "model", "the upload"):
        try:
            private = api.repo_info(repository).private
        except RepositoryNotFoundError:
            private = not public
            api.create_repo(repository, private=private)
    if not private and not public:  # and nothing says how to upload it all the same
        raise UserError(
            f"--push {repository}: is public already, so anyone could read what is uploaded; add --public if that"
            f" is meant, or name another; {folder} is written"
        )
    with _kept(folder, repository), _in_one_line(name, "model", "the upload"):
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload by jaxcxr {__version__}")
    return _address(name, "model")


@contextlib.contextmanager
def _kept(folder: Path, repository: str) -> Iterator[None]:
    """Adds to an error that the folder is there, and how to upload it without making it again."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {folder} is written, and hf upload {repository} {folder} uploads it") from error


def check_push(repository: str) -> Name:
    """The name of a repository to write; raises UserError where it is none, or nobody is logged in."""
    from huggingface_hub import constants, get_token

    name = parse(repository)
    if name is None or str(name) != name.repository:
        raise UserError(f"--push {one_line(repository)}: is no name of a repository; give ORG/NAME, or USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {repository}: HF_HUB_OFFLINE is set; type unset HF_HUB_OFFLINE first")
    if get_token() is None:
        raise UserError(f"--push {repository}: nobody is logged in; type hf auth login, with a token that may write")
    return name


def _named(path: str | Path) -> Name | None:
    """The name of a repository that `path` is, if there is nothing of that name here."""
    name = parse(path)
    return None if name is None or Path(path).exists() else name


@functools.cache  # so that a process sees one commit of a branch, and asks once
def _look_up(repository: str, revision: str, kind: Kind) -> _Repository:
    from huggingface_hub import constants, snapshot_download

    unreached: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            info = _api().repo_info(repository, repo_type=kind, revision=revision or None)
            return _Repository(str(info.sha), tuple(each.rfilename for each in info.siblings or ()))
        except Exception as error:
            if not _is_unreached(error):
                raise
            unreached = error
    try:
        folder = Path(
            snapshot_download(
                repository, repo_type=kind, revision=revision or None, local_files_only=True, allow_patterns=[]
            )
        )
    except FileNotFoundError:
        if unreached:
            raise unreached from None
        raise
    files = tuple(sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()))
    why = "HF_HUB_OFFLINE is set" if unreached is None else f"{_host()} cannot be reached"
    if unreached:
        print(f"{repository}: {why}; commit {folder.name[:12]}, which is in the cache, is read", file=sys.stderr)
    return _Repository(folder.name, files, folder, why)


def _chosen(name: Name, repository: _Repository, choose: Choose) -> tuple[str, list[str]]:
    """What to read of a repository: a folder or file of it, and the names of the files that are needed."""
    if name.inside in repository.files:
        return name.inside, [name.inside]
    prefix = f"{name.inside}/" if name.inside else ""
    below = [file.removeprefix(prefix) for file in repository.files if file.startswith(prefix)]
    here = " in the cache" if repository.folder else ""
    remedy = f"; {repository.why}: read it once with a connection" if repository.folder else ""
    if name.inside and not below:
        tops = dict.fromkeys(file.split("/")[0] for file in repository.files)
        raise UserError(
            f"{name}: has no folder or file {name.inside}{here}; at its top are {_listed(tops)}"
            f"{remedy or '; name one of these'}"
        )
    try:
        return name.inside, [prefix + file for file in choose(below)]
    except Absent as error:
        raise UserError(f"{name}: {error}{remedy}") from error


def _download(name: Name, commit: str, wanted: Sequence[str], kind: Kind) -> Path:
    """The folder of the cache that has the files that are needed."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name.repository,
        repo_type=kind,
        # The branch and not the commit, so that the cache knows where it is when the hub is not asked.
        revision=_pinned_from.get((name.repository, commit), name.revision) or None,
        allow_patterns=[glob.escape(file) for file in wanted],
        library_name="jaxcxr",
        library_version=__version__,
    )
    if Path(folder).name != commit:
        raise UserError(f"{name}: has got another commit in this moment; run it again")
    return Path(folder)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="jaxcxr", library_version=__version__)


def _host() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT.partition("://")[2]


def _address(name: Name, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name.repository}"


def _listed(names: Sequence[str] | dict[str, None], most: int = 8) -> str:
    said = [one_line(each) for each in list(names)[:most]]
    return ", ".join(said) + (f" and {len(names) - most} more" if len(names) > most else "") if said else "no files"


def _is_unreached(error: Exception) -> bool:
    """Whether the hub could not be asked, so that a copy in the cache is as good an answer as there is."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _status(error) >= 500
    return isinstance(error, OfflineModeIsEnabled) or type(error).__module__.split(".")[0] in _CONNECTIONS


def _status(error: BaseException) -> int:
    return getattr(getattr(error, "response", None), "status_code", None) or 0


@contextlib.contextmanager
def _in_one_line(name: Name, kind: Kind, doing: str = "") -> Iterator[None]:
    """Raises what huggingface_hub raises as a UserError that says what to type.

    Args:
      name: of what is asked for.
      kind: of it.
      doing: what breaks off; empty where it is not known yet whether there is such a repository.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = _said(name, kind, error, doing)
        if said is None:
            raise
        raise UserError(f"{name}: {said}") from error


def _said(name: Name, kind: Kind, error: Exception, doing: str) -> str | None:
    """What an error means; None for one that is a bug."""
    from huggingface_hub import constants, errors

    what, address, status = "data set" if kind == "dataset" else "model", _address(name, kind), _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"is gated; ask for access at {address}, then type hf auth login with a token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such file or folder here, and no {what} of that name on {_host()}; check the path or the name, or type"
            " hf auth login if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {name.revision!r}; {address}/tree/main lists its branches and tags"
    if isinstance(error, FileNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"no such file or folder here, and no {what} of that name in the cache, {constants.HF_HUB_CACHE};"
            " HF_HUB_OFFLINE is set: to download it type unset HF_HUB_OFFLINE"
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"a file of it is missing on {_host()} ({one_line(error)}); name another revision, as {name}@REVISION"
    if status == 401:
        return f"{_host()} does not take the token of this machine; type hf auth login, or unset HF_TOKEN"
    if status == 403:
        return f"{_host()} does not allow it to the token of this machine; type hf auth login with one that may"
    if isinstance(error, OSError) and error.errno in _FULL:
        return (
            f"the disk of {constants.HF_HUB_CACHE} is full; free space on it, or set HF_HOME to a folder of another"
            " disk, and run it again: what is complete is kept"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return f"{error.filename}: cannot be written ({error.strerror}); set HF_HOME to a folder of yours"
    # hf_xet, by which large files come, has RuntimeError for whatever breaks off.
    if _is_unreached(error) or isinstance(error, OSError) or (doing and isinstance(error, RuntimeError)):
        why = f"({one_line(error)[:120]})"
        if doing:
            return f"{doing} broke off {why}; run it again: what is complete is kept"
        return (
            f"no such file or folder here, and {_host()} cannot be reached {why}; check the path, or run it again with"
            " a connection"
        )
    return None
