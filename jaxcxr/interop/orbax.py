"""Orbax checkpoints: a weightless diffusers folder `model/`, and `checkpoints/STEP/` beside it.

Each step holds separate items, so that weights can be read without the optimizer: `params` (parameters by their full
names), `ema` (those that learn, averaged), and for training `opt_state`. Of a run `params` has what learns; the rest
is written once, to `frozen/`. Of a conversion, and of runs of before there was a `frozen/`, it has every parameter.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr import adaptation, buckets, parsing
from jaxcxr.errors import UserError, one_line
from jaxcxr.files import is_whole, new_folder, replace_file
from jaxcxr.interop import checksums
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.config_files import UNPUBLISHED
from jaxcxr.interop.diffusers import read_files
from jaxcxr.interop.folder import CARRIED, OWN, has_file
from jaxcxr.interop.pipeline import write_files
from jaxcxr.interop.tensors import Tensor, cast_all, contiguous

MODEL, CHECKPOINTS, FROZEN, BEST = "model", "checkpoints", "frozen", "best.json"
_COMMITTED = "commit_success.txt"  # by which Orbax marks what is whole in a bucket, written last
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_AT_ONCE = 128 * 2**20  # bytes of tensors in memory while they are written


def is_orbax(path: Path) -> bool:
    """Whether `path` is a folder this module reads."""
    return is_whole(path / MODEL) and (path / CHECKPOINTS).is_dir()


def steps(path: Path) -> list[int]:
    """The complete steps under `path/checkpoints`, the newest first."""
    # Orbax renames a step's folder to its number when it is complete. Other files and folders may have such a name too.
    found = [folder.name for folder in _numbered(path) if _is_step(folder)]
    return sorted(map(int, found), reverse=True)


def no_steps(path: Path) -> list[Path]:
    """What else is under `path/checkpoints` that has a number for a name, and that Orbax takes for a step."""
    return [each for each in _numbered(path) if not _is_step(each)]


def _numbered(path: Path) -> list[Path]:
    try:
        return sorted(each for each in (path / CHECKPOINTS).iterdir() if each.name.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_unfinished_steps(path: Path) -> None:
    """Removes the steps of a bucket that an interrupted run was writing: they have the names of whole ones."""
    for folder in no_steps(path) if buckets.holds(path) else ():
        buckets.remove(folder)


def _is_step(folder: Path) -> bool:
    if buckets.holds(folder):
        return _NUMBER.fullmatch(folder.name) is not None and (folder / _COMMITTED).is_file()
    parts = (folder / "params", folder / checksums.CHECKSUMS)  # a damaged step has one of them
    return _NUMBER.fullmatch(folder.name) is not None and any(part.exists() for part in parts)


def latest_step(path: Path) -> int | None:
    """The last complete step under `path/checkpoints`, None if there is none."""
    return max(steps(path), default=None)


def best_step(path: Path) -> int | None:
    """The step that did best in a run that was stopped early, if it is there; None for other runs.

    Raises:
      UserError: the file that names it is damaged.
    """
    file = path / BEST
    if not file.is_file():
        return None
    step: int = parsing.read_json(file, dict[str, int], remedy=f"remove {file} to use the last step").get("step", -1)
    return step if step in steps(path) else None


def step_to_read(path: Path) -> int | None:
    """The step that `read` takes: the best one where that is on record, or the last; None if there is none.

    Raises:
      UserError: as `best_step`.
    """
    best = best_step(path)
    return latest_step(path) if best is None else best


def write_best(path: Path, step: int) -> None:
    """Puts on record which step did best."""
    replace_file(path / BEST, (json.dumps({"step": step}) + "\n").encode())


def read(path: Path, *, ema: bool = True, only: Iterable[str] | None = None) -> Checkpoint:
    """Reads the latest step of a workdir or of a converted checkpoint, or the best one where that is on record.

    Args:
      path: the folder that holds `model/` and `checkpoints/`.
      ema: take the averaged weights where the checkpoint has them.
      only: the networks wanted; all that are there if None.

    Raises:
      UserError: there is no complete step, or it is damaged.
    """
    path = path.absolute()
    files, learnt = read_learnt(path, ema=ema)
    frozen: dict[str, Tensor] = {}
    if is_whole(path / FROZEN):
        if what := checksums.damage(path / FROZEN):
            raise UserError(f"{path / FROZEN}: is damaged, {what}; copy it again")
        frozen = read_item(path / FROZEN / "params")
    files, tensors = adaptation.merged(files, frozen | learnt)
    own = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in UNPUBLISHED}
    return Checkpoint(files, own).only(only)


def read_learnt(path: Path, *, ema: bool = True) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """The files of `model/`, and what the step to read holds: of a run what learns, as it learns.

    Raises:
      UserError: as `read`.
    """
    path = path.absolute()
    files, step = _read_model(path / MODEL), step_to_read(path)
    if step is None:
        raise UserError(f"{path / CHECKPOINTS}: no complete checkpoint; train longer or copy the folder again")
    folder, items = path / CHECKPOINTS / str(step), ("params", "ema") if ema else ("params",)

    def remedy() -> str:
        others = (each for each in steps(path)[1:] if not checksums.damage(folder.with_name(str(each)), items))
        older = next(others, None)
        return "copy it again" if older is None else f"step {older} is whole; move {folder} away to use that one"

    if what := checksums.damage(folder, items):
        raise UserError(f"{folder}: is damaged, {what}; {remedy()}")
    found = read_item(folder / "params", remedy)
    if ema and (folder / "ema").is_dir():
        found |= read_item(folder / "ema", remedy)
    return files, found


def _read_model(folder: Path) -> dict[str, bytes]:
    """The files of `model/`: a diffusers folder's or a classifier's, and what a run has learnt beside the networks."""
    files, parts = read_files(folder, CARRIED | OWN), folder / adaptation.ADAPTATION
    return files | ({parts.name: parsing.read_bytes(parts)} if has_file(parts, folder) else {})


def adaptation_of(path: Path) -> dict[str, Any]:
    """The settings of the parts that a workdir has learnt, by name; none where `path` is no workdir.

    Raises:
      UserError: as `adaptation.settings_in`.
    """
    return adaptation.settings_in(_read_model(path / MODEL)) if is_orbax(path) else {}


def write(checkpoint: Checkpoint, path: str | Path, *, dtype: Any = None) -> None:
    """Writes `checkpoint` as step 0 of a new folder, its floats as `dtype` or as they are; all of it or nothing.

    Tensors are read as they are written, a few at a time. They are not compressed: weights hardly get smaller by it.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    import orbax.checkpoint as ocp

    with new_folder(path) as folder, disk_errors():
        write_files(folder / MODEL, checkpoint.files)
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        parent = (folder / CHECKPOINTS).absolute()
        with ocp.CheckpointManager(parent, options=options, item_handlers={"params": _handler()}) as manager:
            tensors = cast_all(checkpoint.tensors, dtype)
            manager.save(0, args=ocp.args.Composite(params=ocp.args.PyTreeSave(tensors)))
        checksums.write(parent / "0")


def write_frozen(workdir: Path, parameters: Mapping[str, Any]) -> None:
    """Writes what does not learn in a run, arrays or tensors by full name; all of it or nothing."""
    import orbax.checkpoint as ocp

    tensors = {name: each if isinstance(each, Tensor) else Tensor.of(each) for name, each in parameters.items()}
    with new_folder(workdir / FROZEN) as folder, disk_errors():
        with ocp.Checkpointer(_handler()) as checkpointer:
            checkpointer.save((folder / "params").absolute(), args=ocp.args.PyTreeSave(tensors))
        checksums.write(folder)


def _handler() -> Any:
    """Orbax's for trees of `Tensor`; weights are not compressed."""
    import orbax.checkpoint as ocp

    registry = ocp.type_handlers.create_type_handler_registry((Tensor, _tensor_handler()))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False, use_zarr3=True)


def _tensor_handler() -> Any:
    """What Orbax is to do with a `Tensor`: as with an array, but not with all of them at once."""
    import orbax.checkpoint as ocp

    class Handler(ocp.type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__(deepcopy_host_arrays=False)

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            args, start = args or [ocp.SaveArgs()] * len(values), 0
            while start < len(values):
                end, size = start, 0
                while end < len(values) and size < _AT_ONCE:
                    size += values[end].nbytes
                    end += 1
                arrays = [contiguous(tensor.read()) for tensor in values[start:end]]
                for written in await super().serialize(arrays, infos[start:end], args[start:end]):
                    written.result()
                start = end
            return []

    return Handler()


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raises the OSError that TensorStore, which does the writing, words as a ValueError: a full disk, say."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextlib.contextmanager
def _readable(folder: Path, remedy: Callable[[], str]) -> Iterator[None]:
    """Raises UserError, with a remedy, for whatever Orbax and TensorStore raise of files that they cannot read."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        said = f"{folder}: cannot be read ({one_line(error)}); it is damaged or not complete"
        raise UserError(f"{said}; {remedy()}") from error


def read_item(folder: Path, remedy: Callable[[], str] = lambda: "copy it again") -> dict[str, Tensor]:
    """An item's tensors, read when asked for; neighbours are read together, and the last two groups are kept.

    Raises:
      UserError: now or later, with a remedy: a file cannot be read.
    """
    import orbax.checkpoint as ocp

    with _readable(folder, remedy), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(folder).item_metadata.tree
        wanted = dict(sorted(stored.items()))
    starts = itertools.accumulate(
        (math.prod(meta.shape) * np.dtype(meta.dtype).itemsize for meta in wanted.values()), initial=0
    )
    groups: dict[int, list[str]] = {}
    for name, start in zip(wanted, starts, strict=False):
        groups.setdefault(start // (2 * _AT_ONCE), []).append(name)

    @functools.lru_cache(maxsize=2)
    def restore(group: int) -> dict[str, np.ndarray]:
        arguments = ocp.args.PyTreeRestore(
            item={name: np.empty((), wanted[name].dtype) for name in groups[group]},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in groups[group]},
            partial_restore=True,
        )
        with _readable(folder, remedy), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return dict(checkpointer.restore(folder, args=arguments))

    def tensor(group: int, name: str) -> Tensor:
        return Tensor(tuple(wanted[name].shape), np.dtype(wanted[name].dtype), lambda: restore(group)[name])

    return {name: tensor(group, name) for group, names in groups.items() for name in names}
