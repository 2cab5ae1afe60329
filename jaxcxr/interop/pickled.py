"""PyTorch's pickled checkpoints (.bin, .ckpt, .pt), read without PyTorch and without running anything in them.

A pickle is a program that builds objects. Python's unpickler, even one that finds no class, can be led to allocate
without bound or to crash (a memo index of 2³², a tuple nested a million deep as a dictionary's key). So it is not
used: `Program` steps through the few opcodes that tensors and plain containers are made of and refuses the rest.
"""

import dataclasses
import functools
import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import ml_dtypes
import numpy as np

from jaxcxr.errors import UserError, one_line
from jaxcxr.interop.tensors import Tensor, require_name

_LARGEST_PICKLE = 64 << 20  # bytes; that of Stable Diffusion's U-Net has 200 000
_MOST_OPCODES = 4_000_000  # an object or so each; the same U-Net's has 23 000
_MOST_AXES, _DEFLATE_RATIO = 32, 1032  # no deflated data is shorter than its contents by more than that
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class Global:
    """A module's attribute, by name alone."""

    name: str


_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_EMBEDDING = "string_to_param"  # under which textual inversion keeps its tensors, at first in such a module
PARAMETERS = Global("torch.nn.modules.container.ParameterDict")
# Names that a checkpoint may mention beside its tensors; nothing is done with them.
_INERT = {f"torch.{dtype}" for dtype in _DTYPES.values()} | {PARAMETERS.name}


def open_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, of either of its formats, to be read one by one.

    What is read is a dictionary of tensors by name, or one in it: under `state_dict`, or `string_to_param`.

    Raises:
      UserError: the file is absent, damaged, big-endian, holds no such tensors, or refers to anything else, by name.
    """
    return open_views(file, Program, views_of)


def open_views(
    file: Path, program: type["Program"], choose: Callable[[Path, Any], dict[str, "View"]]
) -> dict[str, Tensor]:
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


def _open(file: Path, program: type["Program"], choose: Callable[[Path, Any], dict[str, "View"]]) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    top, storages = (_open_zip if zipped else _open_legacy)(file, program)
    views = choose(file, top)
    if not views:
        raise UserError(f"{file}: holds no dictionary of tensors, nor one under state_dict; is it a checkpoint?")
    return {name: _tensor(file, name, view, storages(view.storage)) for name, view in views.items()}


def views_of(file: Path, top: Any) -> dict[str, "View"]:
    """The tensors of a dictionary, or of the one in it under `state_dict` or `string_to_param`; the rest is left."""
    for inner in ("state_dict", _EMBEDDING):
        if isinstance(top, dict) and isinstance(top.get(inner), dict):
            top = top[inner]
    return {name: view for name, view in top.items() if isinstance(view, View)} if isinstance(top, dict) else {}


class _Damaged(Exception):
    """What is wrong with a file, in words of ours."""


def _guarded(file: Path, action: Callable[[], Any]) -> Any:
    """What `action` returns; whatever a damaged file makes it raise becomes one line that names the file."""
    try:
        return action()
    except UserError:
        raise
    except Exception as error:  # a hostile file may provoke any
        reason = one_line(str(error) if isinstance(error, _Damaged) else error)
        raise UserError(f"{file}: cannot be read ({reason}); copy the file again") from error


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A PyTorch storage, or the `count` elements from `start` on of one."""

    dtype: np.dtype
    key: str
    numel: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: a strided view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _storage(identity: Any) -> _Storage:
    kind, storage_type, key, _, numel, *view = identity
    require(kind == "storage" and isinstance(storage_type, Global), "a persistent id that is no storage")
    require(storage_type.name in _DTYPES, f"a storage of type {storage_type.name}")
    require(isinstance(key, str) and _is_count(numel), "a storage whose key or size is none")
    start, count = 0, numel
    if view and view[0] is not None:
        _, start, count = view[0]
        require(_is_count(start) and _is_count(count) and start + count <= numel, "a view beyond its storage")
    return _Storage(_DTYPES[storage_type.name], key, numel, start, count)


def rebuild_view(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    """The view that the arguments of `torch._utils._rebuild_tensor_v2` describe."""
    require(isinstance(storage, _Storage) and _is_count(offset), "a tensor without a storage")
    require(isinstance(shape, tuple) and isinstance(strides, tuple), "a tensor without a shape")
    require(len(shape) == len(strides) <= _MOST_AXES, f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    require(all(map(_is_count, shape + strides)), "a tensor with a size or stride below zero")
    # After requires_grad and hooks: whether the values are to be conjugated or negated.
    require(len(rest) < 3 or not rest[2], "a tensor with metadata")
    return View(storage, offset, shape, strides)


def _ordered(*arguments: Any) -> dict[str, Any]:
    require(len(arguments) < 2, "an OrderedDict of several arguments")
    return {key: value for pairs in arguments for key, value in pairs if type(key) is str}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": rebuild_view,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda sizes: sizes,
    "torch.device": lambda *_: None,
    "__builtin__.set": list,
}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def require(condition: bool, otherwise: str) -> None:
    """Ends the reading of a file of which `condition` does not hold; `otherwise` says what is wrong."""
    if not condition:
        raise _Damaged(otherwise)


_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"}
_LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# A set is read as a list: it is left aside in the end, and hashing its items is not safe.
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class Program:
    """One pickle, run on a stack of plain values. Dictionaries keep the entries whose keys are strings."""

    functions: ClassVar[Mapping[str, Callable[..., Any]]] = _FUNCTIONS
    """What stands in for the functions that a pickle may call, by name."""

    def __init__(self, file: Path):
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0
        self.dtypes: dict[str, np.dtype] = {}  # of the storages met, by key

    def run(self, stream: BinaryIO) -> Any:
        """The object that the pickle at the stream's position describes; the stream is left behind it."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            require(count < _MOST_OPCODES, f"more than {_MOST_OPCODES} opcodes")
            self._step(opcode.name, argument)
        (value,) = self._stack
        return value

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            stack.append(tuple(reversed([stack.pop() for _ in range(_TUPLES[opcode])])))
        elif opcode not in _NOTHING:
            self._act(opcode, argument)

    def _act(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._pop_marked()))
            case "FROZENSET":
                stack.append(self._pop_marked())
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._pop_marked())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._update([key, value])
            case "SETITEMS":
                self._update(self._pop_marked())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL" | "INST":
                self._refer(*argument.split(" ", 1))
                require(opcode == "GLOBAL", "the pickle opcode INST")
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                self._refer(module, attribute)
            case "NEWOBJ" if stack[-2:] == [PARAMETERS, ()]:
                stack[-2:] = [{}]
            case "REDUCE":
                self._call(arguments=stack.pop(), function=stack.pop())
            case "BUILD":
                state = stack.pop()  # attributes of a dictionary, such as the versions of a state dict's modules
                require(type(stack[-1]) is dict, "attributes of what is no dictionary")
                if type(state) is dict and "_parameters" in state:
                    stack[-1] = state["_parameters"]
            case "BINPERSID":
                identity = stack.pop()
                if identity[:1] != ("module",):
                    identity = (None, _storage(identity))
                    self.dtypes.setdefault(identity[1].key, identity[1].dtype)
                stack.append(identity[1])  # of the format before 1.6 also a class, whose source is left
            case _:
                raise _Damaged(f"the pickle opcode {opcode}")

    def _pop_marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        require(type(self._stack[-1]) is list, "items of what is no list")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        require(type(self._stack[-1]) is dict, "entries of what is no dictionary")
        pairs = zip(items[::2], items[1::2], strict=True)
        self._stack[-1].update((key, value) for key, value in pairs if type(key) is str)

    def _refer(self, module: Any, attribute: Any) -> None:
        require(type(module) is str and type(attribute) is str, "a reference that is no name")
        name = f"{module}.{attribute}"
        if name not in {*_DTYPES, *self.functions, *_INERT}:
            self._refer_beyond(name)
        self._stack.append(Global(name))

    def _refer_beyond(self, name: str) -> None:
        """Meets a name that is no dtype, function or inert name of ours."""
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        what = f"refers to `{one_line(name)}`; such a file could run code and is not read"
        raise UserError(f"{self._file}: {what}; save its tensors alone, with torch.save(model.state_dict(), …)")

    def _call(self, arguments: Any, function: Any) -> None:
        require(isinstance(function, Global) and type(arguments) is tuple, "a call of what is no function")
        require(function.name in self.functions, f"a call of {function.name}")
        self._copied += sum(len(argument) for argument in arguments if hasattr(argument, "__len__"))
        require(self._copied < _MOST_OPCODES, "too many copies of its own parts")
        self._stack.append(self.functions[function.name](*arguments))


@dataclasses.dataclass(frozen=True)
class _Region:
    """The bytes of one storage: how many, and a function of (start, count) that reads some of them."""

    nbytes: int
    read: Callable[[int, int], np.ndarray]


def _mapped(file: Path, offset: int, nbytes: int) -> _Region:
    require(offset + nbytes <= file.stat().st_size, f"{nbytes} bytes at {offset} are beyond its end")
    # Mapped anew for each reading: a map that stays would count every page read as this process's memory.
    return _Region(nbytes, lambda start, count: np.memmap(file, np.uint8, "r", offset + start, count))


def _open_zip(file: Path, program: type[Program]) -> tuple[Any, Callable[[_Storage], _Region]]:
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


def _open_legacy(file: Path, program: type[Program]) -> tuple[Any, Callable[[_Storage], _Region]]:
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

    def region(storage: _Storage) -> _Region:
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
