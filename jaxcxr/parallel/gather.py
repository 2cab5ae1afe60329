"""Split weights in use: gathered once a step, and their gradients split again as they come.

Left to itself the compiler gathers weights wherever they are used: in each part of an accumulated batch, on the way
there and back, and once more under remat; of a convolution's it may send activations about instead.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

_ROUNDED = (".kernel", ".embedding")  # by the networks before use, to their compute dtype


def gather(
    parameters: Mapping[str, jax.Array], shardings: Mapping[str, NamedSharding], dtype: DTypeLike
) -> dict[str, jax.Array]:
    """Parameters by name, whole along `fsdp`; what networks round to `dtype` at once is rounded before it is sent."""

    def whole(name: str, value: jax.Array) -> jax.Array:
        sharding = shardings[name]
        if "fsdp" not in sharding.spec:
            return value
        spec = PartitionSpec(*[None if axis == "fsdp" else axis for axis in sharding.spec])
        rounded = value.astype(dtype) if name.endswith(_ROUNDED) else value
        return jax.lax.with_sharding_constraint(rounded, NamedSharding(sharding.mesh, spec))

    return {name: whole(name, value) for name, value in parameters.items()}


def scatter(gradients: Mapping[str, jax.Array], shardings: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """Gradients of what `gather` gave, float32, each summed up where its parameter lies."""

    def split(name: str, value: jax.Array) -> jax.Array:
        if "fsdp" not in shardings[name].spec:
            return value
        return jax.lax.with_sharding_constraint(value, shardings[name]).astype(jnp.float32)

    return {name: split(name, value) for name, value in gradients.items()}
