"""Whole modules that `torch.save` pickled, read as their tensors by the names of a state dict.

Such a pickle names the class of each module and gives the module's attributes. A class's name is kept as text alone:
no class is looked for, made or called, and of the attributes only `_parameters`, `_buffers` and `_modules` are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxcxr.interop.pickle_program import PARAMETERS, Global, Program, View, rebuild_view, require
from jaxcxr.interop.pickled import open_views, views_of
from jaxcxr.interop.tensors import Tensor, require_name

_PARTS = ("_parameters", "_buffers", "_modules")
_DEEPEST, _MOST_ENTRIES = 100, 1_000_000  # modules within modules; their parts, of which DenseNet-121 has 3 000


def open_pickled_module(file: Path) -> dict[str, Tensor]:
    """The tensors of a module, or of a dictionary as `open_pickled` reads it; either format of `torch.save`.

    A name is the path through the modules, as in a state dict: `features.conv0.weight`. Buffers that a state dict
    leaves out are left out.

    Raises:
      UserError: the file is absent, damaged, big-endian, holds no such tensors, or refers to anything else, by name.
    """
    return open_views(file, _ModuleProgram, _chosen)


class _Module:
    """What a pickle says of a module: the name of its class, and its attributes."""

    __slots__ = ("attributes", "name")

    def __init__(self, name: str):
        self.name = name
        self.attributes: dict[str, Any] | None = None


class _ModuleProgram(Program):
    """A pickle that may also name classes, each of which has to be that of a module."""

    # As PyTorch wrote tensors, parameters and modules before 0.4 and before 1.4.
    functions: ClassVar[Mapping[str, Callable[..., Any]]] = {
        **Program.functions,
        "torch._utils._rebuild_tensor": rebuild_view,
        "torch.nn.parameter.Parameter": lambda data, *_: data,
        "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,
    }

    def __init__(self, file: Path):
        super().__init__(file)
        self._classes: dict[str, bool] = {}  # by name, in the order met: whether a module is of it

    def run(self, stream: Any) -> Any:
        top = super().run(stream)
        for name, used in self._classes.items():
            if not used:
                self._refuse(name)
        return top

    def _refer_beyond(self, name: str) -> None:
        self._classes.setdefault(name, False)

    def _act(self, opcode: str, argument: Any) -> None:
        if opcode == "NEWOBJ":
            arguments, kind = self._stack.pop(), self._stack.pop()
            require(isinstance(kind, Global) and type(arguments) is tuple, "an object of what is no class")
            if arguments or (kind.name not in self._classes and kind != PARAMETERS):
                self._refuse(kind.name)
            self._stack.append(_Module(kind.name))
        elif opcode == "BUILD" and isinstance(self._stack[-2], _Module | View):
            self._build(self._stack[-2], self._stack.pop())
        else:
            super()._act(opcode, argument)

    def _build(self, built: _Module | View, state: Any) -> None:
        if isinstance(built, View):
            require(type(state) is tuple, "attributes of a tensor")  # whether an old parameter wants gradients
        elif type(state) is dict and all(type(state.get(part)) is dict for part in _PARTS):
            built.attributes = state
            self._classes[built.name] = True
        else:
            self._refuse(built.name)

    def _call(self, arguments: Any, function: Any) -> None:
        if isinstance(function, Global) and function.name in self._classes:
            self._refuse(function.name)
        super()._call(arguments, function)


def _chosen(file: Path, top: Any) -> dict[str, View]:
    return _tensors(file, top) if isinstance(top, _Module) else views_of(file, top)


def _tensors(file: Path, top: _Module) -> dict[str, View]:
    """The tensors of a module and of those within it. A module may be in two places, but not within itself."""
    found: dict[str, View] = {}
    entries = 0
    pending: list[tuple[str, Any, tuple[_Module, ...]]] = [("", top, ())]
    while pending:
        path, module, above = pending.pop()
        require(isinstance(module, _Module) and module.attributes is not None, f"the module {path} is none")
        require(module not in above, f"the module {path} is within itself")
        require(len(above) < _DEEPEST, f"more than {_DEEPEST} modules within one another")
        parameters, buffers, modules = (module.attributes[part] for part in _PARTS)
        passing = module.attributes.get("_non_persistent_buffers_set") or ()
        entries += len(parameters) + len(buffers) + len(modules) + len(passing)
        require(entries < _MOST_ENTRIES, f"more than {_MOST_ENTRIES} parts of modules")
        left = {name for name in passing if type(name) is str}
        for name, value in [*parameters.items(), *((name, buffers[name]) for name in buffers if name not in left)]:
            require_name(file, f"{path}{name}")
            require(value is None or isinstance(value, View), f"{path}{name} is no tensor")
            require(f"{path}{name}" not in found, f"two tensors of the name {path}{name}")
            if value is not None:
                found[f"{path}{name}"] = value
        for name, value in reversed(modules.items()):
            require_name(file, f"{path}{name}")
            if value is not None:
                pending.append((f"{path}{name}.", value, (*above, module)))
    return found
