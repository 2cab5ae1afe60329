"""The mesh: how devices are laid out, and how a batch lies on them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcxr.errors import UserError

Call = TypeVar("Call", bound=Callable[..., Any])

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The axes that a batch is split over: devices along `tensor` share their images."""


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of every device, or of `devices`, with axes `AXES`.

    Args:
      shape: a size by axis; one may be −1 and takes what is left. Several slices, joined by a slower network, are
        laid along `data`.
      devices: of a topology that need not be there.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `data` does not divide into the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(shape, len(devices))
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise UserError(f"config.mesh.data={sizes[0]}: is not a multiple of the {slices} slices, which lie along it")
    from jax.experimental import mesh_utils

    inner, outer = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
    # As `jax.make_mesh` does for one slice: an axis of the mesh may take a part of one of the slice's.
    laid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def own_mesh() -> Mesh:
    """A mesh of this process's own devices, all along `data`: for work that processes share, each its part."""
    return make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices())


def _sizes(shape: Mapping[str, int], devices: int) -> tuple[int, ...]:
    sizes = [shape[axis] for axis in AXES]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh ({said}): wants a size for each axis, at most one of them -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices // int(np.prod([size for size in sizes if size != -1]))
    if int(np.prod(sizes)) != devices:
        raise UserError(f"config.mesh ({said}): does not multiply to {devices} devices; use -1 for one axis")
    return tuple(sizes)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises UserError unless a batch divides into equal parts, one for each device and micro-batch."""
    ways = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size % (ways * accumulation):
        raise UserError(
            f"config.batch_size={batch_size}: is not a multiple of {ways} devices (data x fsdp)"
            f" times config.accumulation={accumulation}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending.

    Which they are is up to the mesh: devices may be laid out in another order than processes are counted, and
    processes may share rows along `tensor`.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's `local_rows` of a batch as global arrays of `batch_size` rows, split over the mesh."""
    sharding, rows = batch_sharding(mesh), local_rows(mesh, batch_size)

    def place(value: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, part)

    return {name: place(value) for name, value in batch.items()}


def split(value: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole as a global one, of which each device is sent its part alone."""
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def within(mesh: Mesh, function: Call) -> Call:
    """The same function where kernels of attention, which do not partition themselves, find the mesh."""

    @functools.wraps(function)
    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return on_mesh  # type: ignore[return-value]
