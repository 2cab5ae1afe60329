"""Sharding rules: a strategy is a short table from name patterns to what is split."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcxr.errors import UserError

Rule = Callable[[tuple[int, ...], Mesh], PartitionSpec]

# Below this, gathering a parameter costs more than keeping copies of it.
_MIN_SIZE = 2**18


def replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A copy on every device."""
    return PartitionSpec()


def split_largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Splits the largest axis that `fsdp` divides; small parameters stay whole."""
    ways = mesh.shape["fsdp"]
    axes = [axis for axis in np.argsort(shape)[::-1] if shape[axis] % ways == 0]
    if ways == 1 or not axes or np.prod(shape) < _MIN_SIZE:
        return PartitionSpec()
    return PartitionSpec(*(("fsdp",) if axis == axes[0] else None for axis in range(axes[0] + 1)))


STRATEGIES: dict[str, tuple[tuple[str, Rule], ...]] = {
    "replicated": ((r".*", replicate),),
    "fsdp": ((r".*", split_largest),),
}


def shard(tree: Any, strategy: str, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a train state, by the name of the parameter that it belongs to.

    A leaf's name is the innermost dictionary key on its path, so the optimizer's moments and the average
    lie where their parameter lies; scalars are replicated.

    Raises:
      UserError: the strategy is unknown, or none of its patterns covers a parameter.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"config.sharding={strategy!r}: no such strategy; there are {', '.join(STRATEGIES)}")
    rules = STRATEGIES[strategy]

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = next((str(key.key) for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), "")
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, _rule(name, rules)(tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _rule(name: str, rules: tuple[tuple[str, Rule], ...]) -> Rule:
    for pattern, rule in rules:
        if re.fullmatch(pattern, name):
            return rule
    raise UserError(f"parameter {name}: no sharding rule covers it; add a pattern to the strategy's table")


def select(parameters: Mapping[str, Any], pattern: str) -> set[str]:
    """The names that `pattern` (a regular expression for the whole name) selects, e.g. `unet\\..*|text_encoder\\..*`.

    Raises:
      UserError: the pattern is not a regular expression, or selects nothing.
    """
    try:
        names = {name for name in parameters if re.fullmatch(pattern, name)}
    except re.error as error:
        raise UserError(f"config.trainable={pattern!r}: not a regular expression ({error})") from error
    if not names:
        first = ", ".join(sorted(parameters)[:3])
        raise UserError(f"config.trainable={pattern!r}: no parameter has such a name; names are like {first}")
    return names
