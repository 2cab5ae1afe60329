"""Arrays of many rows that are computed a shard at a time, each once, by any process, and kept in files."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.files import locked_folder, missing, remove_unfinished, replace_file
from jaxcxr.parallel import processes

Arrays = Mapping[str, np.ndarray]
"""By name, all with as many rows."""
Compute = Callable[[Sequence[slice]], Iterable[Arrays]]
"""Slices of the rows -> the arrays of each, in order. It is called by each process, on its own devices."""


def keep(folder: Path, count: int, per_shard: int, compute: Compute) -> dict[str, np.ndarray]:
    """The arrays of all rows: those of shards that the folder has are read, the others are computed first.

    Args:
      folder: of these rows alone; its name is a digest of all that decides them.
      count: the rows.
      per_shard: rows of a file.
      compute: see `Compute`.

    Raises:
      UserError: the folder cannot be written, another job writes it, or a file in it is damaged.
    """
    shards = [slice(start, min(start + per_shard, count)) for start in range(0, count, per_shard)]
    files = [folder / f"{number:05}.npz" for number in range(len(shards))]
    if processes.from_first(lambda: missing(files)):  # one process decides, as file systems may tell each another thing
        with contextlib.ExitStack() as held:
            processes.on_first(lambda: _claim(folder, held))
            mine = processes.share_out(lambda: missing(files))
            for number, arrays in zip(mine, compute([shards[number] for number in mine]), strict=True):
                _write(files[number], arrays)
            processes.on_first(lambda: None)  # the others are done too
    parts = list(map(_read, files))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def one_by_one(compute: Callable[[slice], Arrays]) -> Compute:
    """A `Compute` of a function of one slice."""

    def each(rows: Sequence[slice]) -> Iterator[Arrays]:
        return map(compute, rows)

    return each


def _claim(folder: Path, held: contextlib.ExitStack) -> None:
    """Makes the folder this job's, alone until `held` is closed."""
    held.enter_context(locked_folder(folder, private=True))
    remove_unfinished(folder)


def _write(file: Path, arrays: Arrays) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    try:
        replace_file(file, data.getvalue(), private=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another --out") from error


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy and zipfile raise almost anything on damaged files
        raise UserError(f"{file}: is damaged ({type(error).__name__}); remove it and evaluate again") from error
