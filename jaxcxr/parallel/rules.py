"""Sharding rules: a strategy is a short table from name patterns to what is split."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    axis = _fsdp_axis(shape, mesh)
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")


def _fsdp_axis(shape: tuple[int, ...], mesh: Mesh, but: int | None = None) -> int | None:
    """The largest axis to split by `fsdp`, but not `but`; the last one of equals, None where nothing is split."""
    ways = mesh.shape["fsdp"]
    if ways == 1 or np.prod(shape) < _MIN_SIZE:
        return None
    axes = np.argsort(shape, stable=True)[::-1]
    return next((int(axis) for axis in axes if axis != but and shape[axis] % ways == 0), None)


def split_tensor(axis: int) -> Rule:
    """Splits an axis (counted from the end) by `tensor`, and the largest of the others by `fsdp`."""

    def rule(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        ways = mesh.shape["tensor"]
        if ways == 1 or len(shape) < -axis or shape[axis] % ways:
            return split_largest(shape, mesh)
        spec: list[str | None] = [None] * len(shape)
        spec[axis] = "tensor"
        rest = _fsdp_axis(shape, mesh, but=len(shape) + axis)
        if rest is not None:
            spec[rest] = "fsdp"
        return PartitionSpec(*spec)

    return rule


# After Shoeybi et al. 2019, arXiv 1909.08053: what widens is split where it comes out and what narrows again where it
# goes in, so that heads and channels in between stay on their device.
_COLUMNS = (
    r".*\.(attn[12]\.to_[qkv]|ff\.net\.0\.proj|conv1|time_emb_proj|[qkv]_proj|fc1|query|key|value|intermediate\.dense)"
)
_ROWS = r".*\.(attn[12]\.to_out\.0|ff\.net\.2|conv2|out_proj|fc2|output\.dense)"
_OTHERS = (
    r".*\.(conv(_in|_out|_shortcut|_norm_out)?|(post_)?quant_conv|proj_(in|out)|encoder_hid_proj|linear_[12]|cond_proj"
    r"|to_[qkv]|to_out\.0|(group_|final_layer_)?norm[123]?|layer_norm[12]|LayerNorm"
    r"|conv[03]|fc|classifier|bn[0-9]|norm[0-9]|downsample\.[01]"
    r"|controlnet_(mid_block|down_blocks\.\d+|cond_embedding\.blocks\.\d+)|main\.\d+|features\.\d+|model\.1"
    r"|(token|position)_embedding|(word|position|token_type)_embeddings|pooler\.dense|lora_[AB])"
)
_LEAF = r"\.(kernel|bias|scale|embedding|mean|var)"
_NAMED = rf"({_COLUMNS}|{_ROWS}|{_OTHERS}){_LEAF}|.*\.lora_magnitude_vector"

STRATEGIES: dict[str, tuple[tuple[str, Rule], ...]] = {
    "replicated": ((r".*", replicate),),
    "fsdp": ((_NAMED, split_largest),),
    "fsdp+tensor": (
        (_COLUMNS + r"\.(kernel|bias)", split_tensor(-1)),
        (_ROWS + r"\.kernel", split_tensor(-2)),
        (_NAMED, split_largest),
    ),
}
"""The first pattern that fits a parameter's whole name decides. What none fits is split as `split_largest` does, and
`unnamed` lists it: whether that is right for a layer which is new here, nobody has thought about."""


def unnamed(names: Iterable[str], strategy: str) -> list[str]:
    """The parameters that no pattern of a strategy fits."""
    return [name for name in names if not any(re.fullmatch(pattern, name) for pattern, _ in STRATEGIES[strategy])]


def warning(unnamed: Sequence[str]) -> list[str]:
    """A line about parameters that no pattern fits, if there are any."""
    if not unnamed:
        return []
    more = f" and {len(unnamed) - 3} more" if len(unnamed) > 3 else ""
    return [
        f"warning: no sharding rule names {', '.join(unnamed[:3])}{more}; they are split along their largest axis,"
        " which need not be right; jaxcxr/parallel/rules.py has the rules"
    ]


def shard_state(state: Any, strategy: str, average_strategy: str, average_memory: str, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a train state.

    Args:
      state: arrays or shapes; the optimizer's moments lie where their parameter lies.
      strategy: of the parameters.
      average_strategy: of `state["average"]`; empty: the parameters'.
      average_memory: "device", or "host" for the average to wait in the host's memory between steps.
      mesh: of the devices.

    Raises:
      UserError: a strategy or memory is unknown, or devices along `tensor`, which share their images, would all do the
        same work.
    """
    if mesh.shape["tensor"] > 1 and strategy in STRATEGIES and strategy != "fsdp+tensor":
        raise UserError(
            f"config.mesh.tensor={mesh.shape['tensor']}: so many devices would do the same work under"
            f" config.sharding={strategy!r}; set that to 'fsdp+tensor', or config.mesh.tensor=1"
        )
    shardings = shard(state, strategy, mesh)
    average = shard(state["average"], average_strategy or strategy, mesh, key="ema_sharding")
    if average_memory not in ("device", "host"):
        raise UserError(f"config.ema_memory={average_memory!r}: may be device or host")
    if average_memory == "host":
        average = jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), average)
    return {**shardings, "average": average}


def shard(tree: Any, strategy: str, mesh: Mesh, *, key: str = "sharding") -> Any:
    """A `NamedSharding` for every leaf of a tree, by the name of the parameter that it belongs to.

    Scalars are replicated.

    Raises:
      UserError: the strategy, of `config.<key>`, is unknown, or it splits nothing since the mesh has all of its several
        devices on `data`.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"config.{key}={strategy!r}: no such strategy; there are {', '.join(STRATEGIES)}")
    if strategy != "replicated" and mesh.size == mesh.shape["data"] > 1:
        raise UserError(
            f"config.{key}={strategy!r}: nothing to split over, all {mesh.size} devices are on config.mesh.data;"
            f" set config.mesh.fsdp={mesh.size}, or less"
        )
    rules = STRATEGIES[strategy]

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = parameter_of(path)
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        rule = next((rule for pattern, rule in rules if re.fullmatch(pattern, name)), split_largest)
        return NamedSharding(mesh, rule(tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def parameter_of(path: Sequence[Any]) -> str:
    """The name of the parameter that a leaf of a train state belongs to: the innermost dictionary key on its path."""
    return next((str(key.key) for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), "")


def matching(names: Iterable[str], pattern: str) -> set[str]:
    """The names that `pattern` selects, which may be none.

    Raises:
      UserError: the pattern is not a regular expression.
    """
    try:
        return {name for name in names if re.fullmatch(pattern, name)}
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"config.trainable={pattern!r}: not a regular expression ({error})") from error


def select(parameters: Mapping[str, Any], pattern: str) -> set[str]:
    """The names that `pattern` (a regular expression for the whole name) selects, e.g. `unet\\..*|text_encoder\\..*`.

    Raises:
      UserError: the pattern is not a regular expression, or selects nothing.
    """
    names = matching(parameters, pattern)
    if not names:
        first = ", ".join(sorted(parameters)[:3])
        raise UserError(f"config.trainable={pattern!r}: no parameter has such a name; names are like {first}")
    return names
