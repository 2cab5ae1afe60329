"""The programs that pickles are, stepped through without running anything of Python's.

A pickle is a program that builds objects. Python's unpickler, even one that finds no class, can be led to allocate
without bound or to crash (a memo index of 2³², a tuple nested a million deep as a dictionary's key). So it is not
used: `Program` steps through the few opcodes that tensors and plain containers are made of and refuses the rest.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import ml_dtypes
import numpy as np

from jaxcxr.errors import UserError, one_line

_MOST_OPCODES = 4_000_000  # an object or so each; that of Stable Diffusion's U-Net has 23 000
_MOST_AXES = 32


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
PARAMETERS = Global("torch.nn.modules.container.ParameterDict")  # in which textual inversion kept its tensors at first
# Names that a checkpoint may mention beside its tensors; nothing is done with them.
_INERT = {f"torch.{dtype}" for dtype in _DTYPES.values()} | {PARAMETERS.name}


class Damaged(Exception):
    """What is wrong with a file, in words of ours."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A PyTorch storage, or the `count` elements from `start` on of one."""

    dtype: np.dtype
    key: str
    numel: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: a strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _storage(identity: Any) -> Storage:
    kind, storage_type, key, _, numel, *view = identity
    require(kind == "storage" and isinstance(storage_type, Global), "a persistent id that is no storage")
    require(storage_type.name in _DTYPES, f"a storage of type {storage_type.name}")
    require(isinstance(key, str) and _is_count(numel), "a storage whose key or size is none")
    start, count = 0, numel
    if view and view[0] is not None:
        _, start, count = view[0]
        require(_is_count(start) and _is_count(count) and start + count <= numel, "a view beyond its storage")
    return Storage(_DTYPES[storage_type.name], key, numel, start, count)


def rebuild_view(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    """The view that the arguments of `torch._utils._rebuild_tensor_v2` describe."""
    require(isinstance(storage, Storage) and _is_count(offset), "a tensor without a storage")
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
        raise Damaged(otherwise)


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
                raise Damaged(f"the pickle opcode {opcode}")

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
