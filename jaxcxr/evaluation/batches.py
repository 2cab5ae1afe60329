"""Arrays of many images through a network, a batch at a time on all devices."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes


class InBatches:
    """A function of weights and rows that is compiled once and serves any number of rows, a batch at a time.

    Every batch has one shape; the last one is filled up with its last row.
    """

    def __init__(
        self,
        compute: Callable[..., jax.Array],
        weights: Mapping[str, Any],
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ):
        """Places the weights.

        Args:
          compute: (weights, rows of each array (B, …)) -> (B, …).
          weights: by name; every device gets a copy.
          batch_size: rows at once, of all devices together; it is rounded up to a multiple of their number.
          mesh: the devices; all there are if None.
        """
        mesh = mesh or meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        whole, self._parts = meshes.replicated(mesh), meshes.batch_sharding(mesh)
        self._run: Any = jax.jit(compute, out_shardings=whole, compiler_options=compiler_options(mesh))
        self._weights = jax.device_put({name: np.asarray(value) for name, value in weights.items()}, whole)
        self._size, self._devices = batch_size, mesh.size

    def __call__(self, *arrays: np.ndarray) -> Iterator[np.ndarray]:
        """Yields what the function makes of N rows of each array, batch by batch, in order.

        Every process has the arrays whole, and gets every result.
        """
        count = len(arrays[0])
        size = -(-min(self._size, count) // self._devices) * self._devices
        for start in range(0, count, max(size, 1)):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            found = self._run(self._weights, *(meshes.split(array[rows], self._parts) for array in arrays))
            yield np.asarray(found)[: count - start]
