"""A network's parameters as a flat dictionary under their names in a checkpoint.

The name is the path through the module, dotted, with Flax's name for the leaf:
`down_blocks.0.resnets.0.conv1.kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError

M = TypeVar("M", bound=nnx.Module)
_BLOCK = re.compile(r"(?:^|.*\.)(?:resnets|transformer_blocks|layers?)\.\d+(?=\.)")


def count_blocks(names: Iterable[str]) -> int:
    """How many residual and transformer blocks parameters of these names belong to; a config's `blocks` is the same."""
    return len({match[0] for name in names if (match := _BLOCK.match(name))})


def _named(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def named_parameters(module: nnx.Module) -> dict[str, Any]:
    """Every parameter of `module` by name, in an order that depends on the architecture alone.

    The values are arrays, or `jax.ShapeDtypeStruct` where the module is abstract.
    """
    return {name: variable.get_value() for name, variable in _named(nnx.state(module, nnx.Param)).items()}


def with_parameters(module: M, params: Mapping[str, jax.Array]) -> M:
    """A module like `module` that computes with `params`; `module` itself, which may be abstract, is untouched.

    Pure, so it may be called under `jax.jit`, `jax.grad` and the like.

    Raises:
        UserError: a parameter is missing, unexpected or of another shape.
    """
    graphdef, state = nnx.split(module)
    own = _named(state)
    if missing := [name for name in own if name not in params]:
        raise UserError(f"{len(missing)} parameters are missing, the first is {missing[0]}")
    if unexpected := [name for name in params if name not in own]:
        raise UserError(f"{len(unexpected)} parameters are unexpected, the first is {unexpected[0]}")
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        value, expected = params[name], variable.get_value().shape
        if value.shape != expected:
            raise UserError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected)}")
        leaves.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


class _Keys:
    """Stands in for `nnx.Rngs` while tracing, where the time its counters take grows as their square."""

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def abstract(cls: type[M], config: Any, dtype: DTypeLike = jnp.float32) -> M:
    """`cls(config, dtype=dtype)` with shapes in place of arrays: nothing is allocated."""
    build: Any = cls
    return nnx.eval_shape(lambda: build(config, dtype=dtype, rngs=_Keys(jax.random.key(0))))


def initial_parameters(
    cls: type[nnx.Module], config: Any, key: jax.Array, wanted: Callable[[str], bool] | None = None
) -> dict[str, jax.Array]:
    """Fresh float32 parameters of `cls(config)` by name, a pure function of `key`; see `jaxcxr.models.initial`.

    With `wanted`, a choice by name, the others are not drawn.
    """
    build: Any = cls
    if wanted is None:
        return named_parameters(build(config, rngs=_Keys(key)))

    @jax.jit  # which leaves out what nothing comes of
    def some(key):
        return {name: value for name, value in named_parameters(build(config, rngs=_Keys(key))).items() if wanted(name)}

    return some(key)
