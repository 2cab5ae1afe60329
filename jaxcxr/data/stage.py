"""Data in a bucket for readers of files: copied once to a local disk, or of large files of records read where they are.

`config.data.stage` names the folder of the local disk. All processes of a host share a copy, which one of them makes;
a copy that was interrupted is resumed. Without it the small files are copied to a temporary folder, and ArrayRecord
reads records from the bucket.
"""

import atexit
import errno
import fcntl
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr import buckets
from jaxcxr.errors import UserError
from jaxcxr.files import make_folder, remove

KEYS = ("data.path", "data.cache", "data.mixture", "model.base", "model.text_encoder_base")
"""The keys of a config that may name folders in a bucket."""
RECORDS = ".array_record"  # in the names of the files that are read where they are
ELSEWHERE = ".bucket"  # in a copied folder: the address of those that were left in the bucket, and their names
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_THREADS = 8


def staged(config: ConfigDict, *, quiet: bool = False) -> tuple[ConfigDict, dict[str, str]]:
    """The config with local folders in place of those in buckets, and the addresses by local folder.

    A base stays in its bucket where nothing is staged: a workdir is read there.

    Raises:
      UserError: a bucket cannot be read, or is of a kind that wants `config.data.stage`; or the local disk is full.
    """
    root, places = config.data.get("stage", ""), dict[str, str]()

    def local(key: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(local(key, each) for each in value)
        if not isinstance(value, str) or not value.startswith(("gs://", "s3://")):
            return value
        source = buckets.place(value)
        if not root and key.startswith("model."):
            return value
        if not root and not value.startswith("gs://"):
            raise UserError(f"config.{key}={value}: is read from a local copy; give --config.data.stage=FOLDER for it")
        records = key.startswith("data.")
        copied = copy(source, Path(root), quiet=quiet, records=records) if root else _without_records(value)
        places[str(copied)] = value
        return str(copied)

    changed = ConfigDict(config.to_dict())
    for section, _, name in (key.partition(".") for key in KEYS):
        if name in changed.get(section, {}):
            changed[section][name] = local(f"{section}.{name}", changed[section][name])
    return changed.lock(), places


def addressed(config: ConfigDict, places: Mapping[str, str]) -> ConfigDict:
    """A config with addresses again in place of the local folders of `staged`."""

    def remote(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: remote(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(remote, value))
        return places.get(value, value) if isinstance(value, str) else value

    return ConfigDict(remote(config.to_dict())).lock()


def copy(source: Path, root: Path, *, quiet: bool = False, records: bool = False) -> Path:
    """Copies a folder of a bucket into the folder `root` of this machine, what is not there yet; returns its place.

    Args:
      source: the folder.
      root: a folder, made if it is not there.
      quiet: shows no bar.
      records: whether files of records have to be in it: raw data are not copied.

    Raises:
      UserError: the bucket cannot be read, holds nothing there, or changes meanwhile; or the disk is full.
    """
    address = hashlib.blake2b(str(source).encode(), digest_size=4).hexdigest()
    target = root / f"{source.name}-{address}"
    wanted = _listed(source, records=records)
    try:
        make_folder(target, private=True)
        with (root / f".{target.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of this host may be copying: wait
            for file in [each for each in target.rglob("*") if each.is_file()]:
                name = file.relative_to(target).as_posix()
                if wanted.get(name) != file.stat().st_size:
                    remove(file)
            todo = {name: size for name, size in wanted.items() if not (target / name).is_file()}
            _check_space(target, sum(todo.values()))
            _fetch(source, target, todo, sum(wanted.values()), quiet)
    except OSError as error:
        said = error.strerror or str(error)
        raise UserError(f"config.data.stage={root}: {source} cannot be copied there ({said}); name another") from error
    return target


def _listed(source: Path, *, records: bool) -> dict[str, int]:
    buckets.check(source)
    with buckets.explained(source):
        wanted = buckets.sizes(source)
    if not wanted:
        raise UserError(f"{source}: there is nothing there; type gcloud storage ls {source.parent}/ to see what is")
    if records and not any(RECORDS in name for name in wanted):
        raise UserError(
            f"{source}: has no files of records; give what jaxcxr prepare or jaxcxr cache wrote, or a local copy of raw"
            " data"
        )
    return wanted


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"config.data.stage={target.parent}: {needed / 1e9:.3g} GB are to be copied there and {free / 1e9:.3g} are"
            " free; name a folder of a larger disk"
        )


def _fetch(source: Path, target: Path, todo: Mapping[str, int], total: int, quiet: bool) -> None:
    """Copies these objects, a file appearing when it is whole."""

    def fetch(name: str) -> int:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        with buckets.explained(source):
            buckets.download(source / name, partial)
        if (size := partial.stat().st_size) != todo[name]:
            partial.unlink()
            raise UserError(f"{source / name}: has {todo[name]} bytes, {size} were copied; run it again to resume")
        partial.replace(file)
        return size

    with (
        tqdm(
            total=total,
            initial=total - sum(todo.values()),
            desc=f"stage {source.name}",
            unit="B",
            unit_scale=True,
            disable=quiet or not todo,
        ) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for size in pool.map(fetch, todo):
            bar.update(size)


@functools.cache
def _without_records(address: str) -> Path:
    """A temporary copy of a folder's small files, with the address of its files of records in their place."""
    source = buckets.place(address)
    wanted = _listed(source, records=True)
    left = [name for name in wanted if RECORDS in name and not name.endswith(".json")]
    folder = Path(tempfile.mkdtemp(prefix="jaxcxr-stage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fetch(source, folder, {name: size for name, size in wanted.items() if name not in left}, 0, True)
    for parent in {str(Path(name).parent) for name in left}:
        names = [Path(name).name for name in left if str(Path(name).parent) == parent]
        (folder / parent).mkdir(parents=True, exist_ok=True)
        content = {"address": str(source if parent == "." else source / parent), "names": names}
        (folder / parent / ELSEWHERE).write_text(json.dumps(content))
    return folder


def where(file: str | Path) -> str | None:
    """The place of a file of records to read: its own, or its address in a bucket; None if there is neither."""
    path = Path(file)
    if path.is_file():
        return str(path)
    content = _elsewhere(path.parent)
    return f"{content['address']}/{path.name}" if path.name in content["names"] else None


@functools.lru_cache(maxsize=16)
def _elsewhere(folder: Path) -> dict[str, Any]:
    file = folder / ELSEWHERE
    return json.loads(file.read_text()) if file.is_file() else {"names": ()}
