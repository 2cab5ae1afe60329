"""JAX on a machine that has compilers for hardware that it has not.

The extras plan-tpu and plan-cuda install libraries that JAX takes for devices: it would look for these at every start,
and complain of each in many lines.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

_CUDA_PLUGIN = "jax_plugins.xla_cuda12"
GPU_MEMORY = 0.92
"""The share of a GPU's memory that programs get; CUDA, cuDNN and NCCL have the rest. JAX's own is 0.75."""


def only_those_here() -> None:
    """Keeps JAX from looking for TPUs and NVIDIA GPUs where there are none; to be called before JAX is imported.

    A machine that has some is left alone, and so is a `JAX_PLATFORMS` that is set.
    """
    tpu = Path("/dev/accel0").exists() or Path("/dev/vfio").exists()
    gpu = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    if not tpu and not gpu and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if not gpu and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and _CUDA_PLUGIN not in sys.modules:
        # JAX loads whatever lies in `jax_plugins`, for CPUs too, and this one then says that it finds no driver.
        nothing = types.ModuleType(_CUDA_PLUGIN)
        nothing.initialize = lambda: None  # type: ignore[attr-defined]
        sys.modules[_CUDA_PLUGIN] = nothing
