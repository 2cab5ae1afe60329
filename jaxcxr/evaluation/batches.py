"""Arrays of many images through a network, a batch at a time on all devices."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes


def in_batches(
    compute: Callable[..., jax.Array],
    weights: Mapping[str, Any],
    arrays: Sequence[np.ndarray],
    batch_size: int = 16,
    mesh: Mesh | None = None,
) -> Iterator[np.ndarray]:
    """Yields what a function makes of N rows, batch by batch, in order.

    Every batch has one shape, so that one program serves all; the last one is filled up with its last row.

    Args:
      compute: (weights, rows of each array (B, …)) -> (B, …); it is compiled.
      weights: by name; every device gets a copy.
      arrays: of N rows each. Every process has them whole, and gets every result.
      batch_size: rows at once, of all devices together; it is rounded up to a multiple of their number.
      mesh: the devices; all there are if None.
    """
    mesh = mesh or meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    whole, parts = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    run: Any = functools.partial(jax.jit, out_shardings=whole, compiler_options=compiler_options(mesh))(compute)
    placed = jax.device_put({name: np.asarray(value) for name, value in weights.items()}, whole)
    count = len(arrays[0])
    size = -(-min(batch_size, count) // mesh.size) * mesh.size
    for start in range(0, count, max(size, 1)):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        found = run(placed, *(meshes.split(array[rows], parts) for array in arrays))
        yield np.asarray(found)[: count - start]
