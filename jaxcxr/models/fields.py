"""What every configuration of a network has in common, and what its fields may hold."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.errors import UserError

# What a field may hold. The bounds lie far beyond every published network; within them a network is described quickly.
_T = TypeVar("_T")
PerLevel = Annotated[tuple[_T, ...], Meta(min_length=1, max_length=8)]
Width = Annotated[int, Meta(ge=1, le=2**15)]
Rows = Annotated[int, Meta(ge=1, le=2**22)]
Layers = Annotated[int, Meta(ge=1, le=64)]
Kernel = Annotated[int, Meta(ge=1, le=15)]
Pair = Annotated[tuple[Width, ...], Meta(min_length=2, max_length=2)]  # tuple[int, int] crashes msgspec 0.22 here
Id = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Epsilon = Annotated[float, Meta(ge=0, lt=1)]
Factor = Annotated[float, Meta(gt=0, le=1e4)]
_MOST_BLOCKS = 256
short = reprlib.repr  # for a message


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that a configuration is hashable and can be static under `jax.jit`."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The fields a network reads; subclasses say what it tolerates besides them.

    `only` maps a key that asks for an architecture variant to the values that ask for none of it;
    `ignored` lists keys that do not touch the architecture.
    """

    only: ClassVar[dict[str, tuple]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any] | NetworkConfig) -> Self:
        """Reads a `config.json`; absent keys take the library's default, keys with a leading `_` are ignored.

        Raises:
            UserError: a key is unknown, or its value is not allowed or asks for something that is not implemented.
        """
        if isinstance(config, cls):
            return config
        if isinstance(config, NetworkConfig):
            raise UserError(f"{type(config).__name__} was given where a {cls.__name__} is needed")
        names = {field.name for field in dataclasses.fields(cls)}
        kept = cls._defaults(config)
        for key, raw in config.items():
            value = _frozen(raw)
            if key in cls.only and value not in cls.only[key]:
                raise UserError(f"{cls.__name__}: {key} = {short(raw)} is not supported (only {cls.only[key]})")
            if key in names:
                kept[key] = value
            elif not (key.startswith("_") or key in cls.only or key in cls.ignored):
                raise UserError(
                    f"{cls.__name__}: unknown key {short(key)} = {short(raw)}; remove it or check its spelling"
                )
        return parsing.convert(kept, cls, cls.__name__)

    @classmethod
    def _defaults(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on another key of the file."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for `config.json`."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @property
    def blocks(self) -> int:
        """How many residual and transformer blocks the network has."""
        raise NotImplementedError

    def _refuse(self, key: str, why: str) -> None:
        raise UserError(f"{key} = {short(getattr(self, key))} {why}")

    def _require_few_blocks(self) -> None:
        if self.blocks > _MOST_BLOCKS:
            raise UserError(f"layers_per_block and others make {self.blocks} blocks; at most {_MOST_BLOCKS} are read")

    def _divides(self, key: str, widths: str) -> None:
        value = getattr(self, widths)
        if any(width % getattr(self, key) for width in (value if isinstance(value, tuple) else (value,))):
            self._refuse(key, f"must divide {widths}, {value}")
