"""Tensors that are read when asked for, and safetensors files of them, one tensor in memory at a time."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: what is known of it at once, and how to get the rest.

    Attributes:
      shape: its shape.
      dtype: its dtype as it is stored.
      read: returns it, a NumPy array, often a view of a file; nothing keeps it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: Any) -> "Tensor":
        """One that is in memory already, or on a device."""
        return cls(array.shape, np.dtype(array.dtype), lambda: np.asarray(array))

    def map(self, change: Callable[[Any], Any]) -> "Tensor":
        """The tensor that `change` makes of this one by moving axes about: no arithmetic, no other dtype."""
        # A view of one element tells the new shape without reading anything.
        shape = change(np.broadcast_to(np.zeros((), self.dtype), self.shape)).shape
        return Tensor(shape, self.dtype, lambda: change(self.read()))

    def transpose(self, *axes: int) -> "Tensor":
        """The tensor with its axes in this order, as NumPy's."""
        return self.map(lambda array: array.transpose(axes))

    def require_finite(self, name: str) -> "Tensor":
        """The tensor; reading it raises UserError with `name` where it holds NaN or infinity."""

        def read() -> np.ndarray:
            array = self.read()
            # A sum is finite only if all its terms are, and is the fastest look at all of them.
            with np.errstate(invalid="ignore", over="ignore"):
                if not np.isfinite(array.sum(dtype=np.float32)):
                    raise UserError(f"{name}: holds NaN or infinity; this checkpoint is damaged")
            return array

        return Tensor(self.shape, self.dtype, read) if is_floating(self.dtype) else self

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Tensors = Mapping[str, Tensor]
"""Tensors by name."""


def is_floating(dtype: np.dtype) -> bool:
    """Whether `dtype` is a float of NumPy's, bfloat16 or one of eight bits."""
    try:
        return dtype.kind != "c" and bool(ml_dtypes.finfo(dtype))
    except ValueError:
        return False


_COPY = "copy the file again"
_LONGEST_NAME = 500
# By the names that safetensors files use.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as views of it.

    Raises:
      UserError: the file is absent, truncated or says of itself what is not so.
    """
    length, entries = _header(file)
    entries.pop("__metadata__", None)
    for name in entries:
        require_name(file, name)
    tensors: dict[str, _Entry] = parsing.convert(entries, dict[str, _Entry], str(file), remedy=_COPY)
    if unknown := [name for name, entry in tensors.items() if entry.dtype not in _DTYPES]:
        raise UserError(
            f"{file}: tensor {unknown[0]} has dtype {tensors[unknown[0]].dtype!r:.100}, which is not supported"
        )
    return {name: _view(file, entry, 8 + length) for name, entry in tensors.items()}


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file has beside its tensors.

    Raises:
      UserError: as `open_safetensors`.
    """
    said = _header(file)[1].get("__metadata__", {})
    return parsing.convert(said, dict[str, str], f"{file}: __metadata__", remedy=_COPY)


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """The length in bytes of a safetensors file's header, and the header."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"{file}: no such file; this checkpoint is not complete")
    try:
        with safe_open(file, framework="numpy"):  # the library checks header, sizes and offsets
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length)
    except (SafetensorError, OSError, ValueError, UnicodeError) as error:
        reason = one_line(str(error))
        raise UserError(f"{file}: cannot be read ({reason}); copy the file again") from error
    return length, parsing.parse_json(header, dict[str, Any], str(file), remedy=_COPY)


def require_name(file: Path, name: str) -> None:
    """Raises UserError if a tensor's name cannot stand in a message of one line."""
    if not (name.isprintable() and len(name) <= _LONGEST_NAME):
        raise UserError(f"{file}: has a tensor of the name {name!r:.100}; copy the file again")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What the header of a safetensors file says of a tensor; `data_offsets` are its first byte and the one after."""

    dtype: str
    shape: tuple[Annotated[int, Meta(ge=0)], ...]
    data_offsets: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=2, max_length=2)]


def _view(file: Path, entry: _Entry, start: int) -> Tensor:
    shape, dtype, offset = entry.shape, _DTYPES[entry.dtype], start + entry.data_offsets[0]

    def read() -> np.ndarray:
        if 0 in shape:
            return np.empty(shape, dtype)
        # Mapped anew for each reading: a map that stays would count every page read as this process's memory.
        return np.memmap(file, np.uint8, "r", offset, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

    return Tensor(shape, dtype, read)


def write_safetensors(file: Path, tensors: Tensors, *, dtype: Any = None, max_shard_size: int | None = None) -> None:
    """Writes `tensors` to `file`, or to numbered shards and their index, one tensor in memory at a time.

    Args:
      file: ends in `.safetensors`; shards are named after it as diffusers and transformers name them.
      tensors: by the names to write.
      dtype: to cast floating-point tensors to; each keeps its own if None.
      max_shard_size: bytes; a file of more tensors than that is split.
    """
    sizes = {name: tensor.nbytes for name, tensor in cast_all(tensors, dtype).items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if max_shard_size is not None and shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return _write_one(file, cast_all(tensors, dtype))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = file.with_name(f"{file.stem}-{number:05}-of-{len(shards):05}.safetensors")
        _write_one(shard, cast_all({name: tensors[name] for name in names}, dtype))
        weight_map |= dict.fromkeys(names, shard.name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def cast_all(tensors: Tensors, dtype: Any) -> dict[str, Tensor]:
    """The tensors with those of floats cast to `dtype` when read; unchanged if None."""

    def cast(tensor: Tensor) -> Tensor:
        if dtype is None or tensor.dtype == dtype or not is_floating(tensor.dtype):
            return tensor
        return Tensor(tensor.shape, np.dtype(dtype), lambda: tensor.read().astype(dtype))

    return {name: cast(tensor) for name, tensor in tensors.items()}


def _write_one(file: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Wide dtypes first, as the library does, so that every tensor starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stream.write(contiguous(tensors[name].read()).reshape(-1).view(np.uint8).data)


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order, copied if it is a transposed view.

    Kernels change between (O, I, H, W) and (H, W, I, O), matrices between (out, in) and (in, out). NumPy copies such a
    view element by element, each from another line of memory; as matrices in blocks it takes a third of the time.
    """
    if array.ndim == 2 and array.T.flags.c_contiguous:
        return _transposed(array.T)
    if array.ndim == 4 and array.transpose(3, 2, 0, 1).flags.c_contiguous:  # (H, W, I, O) of (O, I, H, W)
        height, width, inputs, outputs = array.shape
        last = _transposed(array.transpose(3, 2, 0, 1).reshape(outputs, -1)).reshape(inputs, height, width, outputs)
        return np.ascontiguousarray(last.transpose(1, 2, 0, 3))
    if array.ndim == 4 and array.transpose(2, 3, 1, 0).flags.c_contiguous:  # (O, I, H, W) of (H, W, I, O)
        last = np.ascontiguousarray(array.transpose(1, 2, 3, 0))
        return _transposed(last.reshape(-1, array.shape[0])).reshape(array.shape)
    return np.ascontiguousarray(array)


def _transposed(matrix: np.ndarray) -> np.ndarray:
    transposed = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 128):
        transposed[:, start : start + 128] = matrix[start : start + 128].T
    return transposed


def open_sharded(index: Path, open_shard: Callable[[Path], Tensors]) -> dict[str, Tensor]:
    """The tensors of all the shards that an `.index.json` names, each opened by `open_shard`.

    Raises:
      UserError: the index is damaged, names a file that is absent or not beside it, or a tensor that the file lacks.
    """
    try:
        found: _Index = parsing.read_json(index, _Index, remedy=_COPY)
        weight_map = found.weight_map
        shards = sorted(set(weight_map.values()))
        if outside := [name for name in shards if Path(name).name != name or not name.isprintable()]:
            raise UserError(f"{index}: names {outside[0]!r:.200}, which is not a file beside it")
        opened = {name: open_shard(index.with_name(name)) for name in shards}
        return {key: opened[name][key] for key, name in weight_map.items()}
    except (OSError, ValueError) as error:  # a name that is none
        raise UserError(f"{index}: cannot be read ({error}); copy the file again") from error
    except KeyError as error:
        raise UserError(
            f"{index}: names the tensor {error.args[0]!r:.200}, which is not there; copy the folder again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Index:
    """An `.index.json`: the file of each tensor, by the tensor's name."""

    weight_map: dict[str, str]
