"""PyTorch's pickled checkpoints (.bin, .ckpt, .pt), read without PyTorch and without running anything in them.

The pickle in such a file is stepped through by `pickle_program`; here are the formats around it, and the tensors.
"""

import dataclasses
import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.errors import UserError, one_line
from jaxcxr.interop.pickle_program import Damaged, Program, Storage, View, require
from jaxcxr.interop.tensors import Tensor, require_name

_LARGEST_PICKLE = 64 << 20  # bytes; that of Stable Diffusion's U-Net has 200 000
_DEFLATE_RATIO = 1032  # no deflated data is shorter than its contents by more than that
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


_EMBEDDING = "string_to_param"  # under which textual inversion keeps its tensors


def open_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, of either of its formats, to be read one by one.

    What is read is a dictionary of tensors by name, or one in it: under `state_dict`, or `string_to_param`.

    Raises:
      UserError: the file is absent, damaged, big-endian, holds no such tensors, or refers to anything else, by name.
    """
    return open_views(file, Program, views_of)


def open_views(file: Path, program: type[Program], choose: Callable[[Path, Any], dict[str, View]]) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, to be read one by one.

    Args:
      file: is read.
      program: what runs its pickle.
      choose: of the file and the object that the pickle describes it takes the views that are wanted, by name.

    Raises:
      UserError: as `open_pickled`.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; this checkpoint is not complete")
    return _guarded(file, functools.partial(_open, file, program, choose))


def _open(file: Path, program: type[Program], choose: Callable[[Path, Any], dict[str, View]]) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    top, storages = (_open_zip if zipped else _open_legacy)(file, program)
    views = choose(file, top)
    if not views:
        raise UserError(f"{file}: holds no dictionary of tensors, nor one under state_dict; is it a checkpoint?")
    return {name: _tensor(file, name, view, storages(view.storage)) for name, view in views.items()}


def views_of(file: Path, top: Any) -> dict[str, View]:
    """The tensors of a dictionary, or of the one in it under `state_dict` or `string_to_param`; the rest is left."""
    for inner in ("state_dict", _EMBEDDING):
        if isinstance(top, dict) and isinstance(top.get(inner), dict):
            top = top[inner]
    return {name: view for name, view in top.items() if isinstance(view, View)} if isinstance(top, dict) else {}


def _guarded(file: Path, action: Callable[[], Any]) -> Any:
    """What `action` returns; whatever a damaged file makes it raise becomes one line that names the file."""
    try:
        return action()
    except UserError:
        raise
    except Exception as error:  # a hostile file may provoke any
        reason = one_line(str(error) if isinstance(error, Damaged) else error)
        raise UserError(f"{file}: cannot be read ({reason}); copy the file again") from error


@dataclasses.dataclass(frozen=True)
class _Region:
    """The bytes of one storage: how many, and a function of (start, count) that reads some of them."""

    nbytes: int
    read: Callable[[int, int], np.ndarray]


def _mapped(file: Path, offset: int, nbytes: int) -> _Region:
    require(offset + nbytes <= file.stat().st_size, f"{nbytes} bytes at {offset} are beyond its end")
    # Mapped anew for each reading: a map that stays would count every page read as this process's memory.
    return _Region(nbytes, lambda start, count: np.memmap(file, np.uint8, "r", offset + start, count))


def _open_zip(file: Path, program: type[Program]) -> tuple[Any, Callable[[Storage], _Region]]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [entry for name, entry in entries.items() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{file}: is a zip file that torch.save did not write; is it a PyTorch checkpoint?")
    pickle, prefix = pickles[0], pickles[0].filename.removesuffix("data.pkl")
    require(pickle.file_size <= _LARGEST_PICKLE, f"data.pkl is larger than {_LARGEST_PICKLE} bytes")
    data = _contents(file, pickle)
    require(pickle.CRC in (0, zlib.crc32(data)), "data.pkl is not what was written")  # 0: PyTorch was asked not to sum
    if order := entries.get(f"{prefix}byteorder"):
        _require_little_endian(file, order.file_size == 6 and _contents(file, order) == b"little")
    top = program(file).run(io.BytesIO(data))

    @functools.cache
    def region(key: str) -> _Region:
        if f"{prefix}data/{key}" not in entries:
            raise UserError(f"{file}: the entry {prefix}data/{key} is missing; copy the file again")
        return _zip_region(file, entries[f"{prefix}data/{key}"])

    return top, lambda storage: region(storage.key)


def _contents(file: Path, entry: zipfile.ZipInfo) -> bytes:
    return _zip_region(file, entry).read(0, entry.file_size).tobytes() if entry.file_size else b""


def _zip_region(file: Path, entry: zipfile.ZipInfo) -> _Region:
    require(not entry.flag_bits & 1, f"{entry.filename} is encrypted")
    if entry.compress_type == zipfile.ZIP_STORED:
        with file.open("rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(30)
        require(len(header) == 30 and header[:4] == b"PK\x03\x04", f"{entry.filename} is not where it should be")
        name_and_extra = sum(struct.unpack("<HH", header[26:]))
        return _mapped(file, entry.header_offset + 30 + name_and_extra, entry.file_size)
    require(entry.compress_type == zipfile.ZIP_DEFLATED, f"{entry.filename} is compressed in an unknown way")
    # What inflates may be far larger than the file, but not by more than the format allows.
    require(entry.compress_size <= file.stat().st_size, f"{entry.filename} cannot be that large")
    require(entry.file_size <= entry.compress_size * _DEFLATE_RATIO, f"{entry.filename} cannot be that large")

    def inflate(start: int, count: int) -> np.ndarray:
        with zipfile.ZipFile(file) as archive, archive.open(entry) as stream:
            stream.seek(start)
            return np.frombuffer(stream.read(count), np.uint8)

    return _Region(entry.file_size, inflate)


def _open_legacy(file: Path, program: type[Program]) -> tuple[Any, Callable[[Storage], _Region]]:
    """The format before PyTorch 1.6: five pickles, then each storage's length and data."""
    with file.open("rb") as raw:
        stream = io.BytesIO(raw.read(_LARGEST_PICKLE))
    if Program(file).run(stream) != _LEGACY_MAGIC or Program(file).run(stream) != _LEGACY_PROTOCOL:
        raise UserError(f"{file}: is not of a format that torch.save writes; is it a PyTorch checkpoint?")
    _require_little_endian(file, Program(file).run(stream)["little_endian"] is True)
    main = program(file)
    top, keys = main.run(stream), Program(file).run(stream)
    require(type(keys) is list and all(type(key) is str for key in keys), "its list of storages is none")
    regions: dict[str, _Region] = {}
    offset = stream.tell()
    with file.open("rb") as raw:
        for key in keys:
            require(key in main.dtypes and key not in regions, "lists a storage twice or one of no tensor")
            raw.seek(offset)
            nbytes = int.from_bytes(raw.read(8), "little") * main.dtypes[key].itemsize
            regions[key] = _mapped(file, offset + 8, nbytes)
            offset += 8 + nbytes

    def region(storage: Storage) -> _Region:
        require(storage.dtype == main.dtypes[storage.key], "a storage of two dtypes")
        return regions[storage.key]

    return top, region


def _require_little_endian(file: Path, little: bool) -> None:
    if not little:
        raise UserError(f"{file}: its numbers are not little-endian; save it again on a little-endian machine")


def _tensor(file: Path, name: str, view: View, region: _Region) -> Tensor:
    """The tensor `name` as a view of its storage's bytes, none of which it may be beyond."""
    storage, shape, dtype = view.storage, view.shape, view.storage.dtype
    require_name(file, name)
    require(storage.numel * dtype.itemsize <= region.nbytes, f"tensor {name}: its storage is shorter than it says")
    size = math.prod(max(axis, 1) for axis in shape) * dtype.itemsize
    require(size <= max(file.stat().st_size, region.nbytes), f"tensor {name}: is larger than the file")
    if 0 in shape:
        return Tensor(shape, dtype, lambda: np.empty(shape, dtype))
    # The stride of an axis of one is never taken and may be anything.
    strides = [stride if axis > 1 else 0 for axis, stride in zip(shape, view.strides, strict=True)]
    span = 1 + sum((axis - 1) * stride for axis, stride in zip(shape, strides, strict=True))
    require(view.offset + span <= storage.count, f"tensor {name}: reaches beyond its storage")
    start, steps = (storage.start + view.offset) * dtype.itemsize, [stride * dtype.itemsize for stride in strides]

    def read() -> np.ndarray:
        flat = region.read(start, span * dtype.itemsize)
        require(flat.nbytes == span * dtype.itemsize, f"tensor {name}: its data end early")
        return np.lib.stride_tricks.as_strided(flat.view(dtype), shape, steps, writeable=False)

    return Tensor(shape, dtype, lambda: _guarded(file, read))
