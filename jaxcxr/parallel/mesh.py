"""The mesh: how devices are laid out, and how a batch lies on them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcxr.errors import UserError

AXES = ("data", "fsdp")


def make_mesh(shape: tuple[int, ...]) -> Mesh:
    """A mesh of every device with axes `AXES`; one size may be −1 and takes what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices, sizes = jax.device_count(), list(shape)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh={shape}: wants a size for each of {AXES}, at most one of them -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices // int(np.prod([size for size in sizes if size != -1]))
    if int(np.prod(sizes)) != devices:
        raise UserError(f"config.mesh={shape}: does not multiply to the {devices} devices here; use -1 for one axis")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch, (B / processes, …) each, as global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
