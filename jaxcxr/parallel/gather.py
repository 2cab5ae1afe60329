"""Weights in use: rounded once a step, whole where they are split, and their gradients where they are kept.

Left to itself the compiler gathers split weights wherever they are used: in each part of an accumulated batch, on the
way there and back, and once more under remat; of a convolution's it may send activations about instead. It rounds
weights in each part too, and keeps float32 copies in another layout for that.
"""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

_ROUNDED = (".kernel", ".embedding")  # by the networks before use, to their compute dtype


def rounded(name: str, value: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A parameter in `dtype` if networks round it to that at once, before they use it; otherwise as it is."""
    return value.astype(dtype) if name.endswith(_ROUNDED) else value


def gather(
    parameters: Mapping[str, jax.Array],
    shardings: Mapping[str, NamedSharding],
    dtype: DTypeLike,
    exact: Collection[str] = (),
) -> dict[str, jax.Array]:
    """Parameters by name, whole along `fsdp`; what networks round to `dtype` at once is rounded before it is sent.

    Those in `exact`, to which something is added first, are not rounded.
    """

    def whole(name: str, value: jax.Array) -> jax.Array:
        sharding = shardings[name]
        used = value if name in exact else rounded(name, value, dtype)
        if "fsdp" not in sharding.spec:
            return used
        # Or a compiler that knows it whole would gather it before it is rounded.
        used = jax.lax.with_sharding_constraint(used, sharding)
        spec = PartitionSpec(*[None if axis == "fsdp" else axis for axis in sharding.spec])
        return jax.lax.with_sharding_constraint(used, NamedSharding(sharding.mesh, spec))

    return {name: whole(name, value) for name, value in parameters.items()}


def scatter(gradients: Mapping[str, jax.Array], shardings: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """Gradients of what `gather` gave, float32, each summed up where its parameter lies."""

    def split(name: str, value: jax.Array) -> jax.Array:
        if "fsdp" in shardings[name].spec:
            value = jax.lax.with_sharding_constraint(value, shardings[name])
        return value.astype(jnp.float32)

    return {name: split(name, value) for name, value in gradients.items()}
