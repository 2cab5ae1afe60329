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


_NVIDIA, _DISPLAY = "0x10de", "0x03"  # a vendor, and the first digits of a class, of PCI


def only_those_here() -> None:
    """Keeps JAX from looking for TPUs and NVIDIA GPUs where there are none; `import jaxcxr` calls it.

    A machine that has some, with or without a driver that works, is left alone, and so is a `JAX_PLATFORMS` that is
    set. JAX may have been imported before, but it has not been used yet.
    """
    tpu = Path("/dev/accel0").exists() or Path("/dev/vfio").exists()
    gpu = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")) or _has_nvidia_card()
    if not tpu and not gpu and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        jax = sys.modules.get("jax")  # which has read the variable already
        if jax is not None and hasattr(jax, "config") and not jax.config.jax_platforms:
            jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    if not gpu and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and _CUDA_PLUGIN not in sys.modules:
        # JAX loads whatever lies in `jax_plugins`, for CPUs too, and this one then says that it finds no driver.
        nothing = types.ModuleType(_CUDA_PLUGIN)
        nothing.initialize = lambda: None  # type: ignore[attr-defined]
        sys.modules[_CUDA_PLUGIN] = nothing


def with_cuda_compiler() -> None:
    """Has JAX load the CUDA plug-in although no GPU is here, to compile for one; to be called before JAX is used."""
    if getattr(sys.modules.get(_CUDA_PLUGIN), "__spec__", None) is None:  # what `only_those_here` has put there
        sys.modules.pop(_CUDA_PLUGIN, None)


def _has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the PCI bus has an NVIDIA GPU; one whose driver is broken has no file in /dev, and JAX has to say so."""
    for vendor in devices.glob("*/vendor"):
        try:
            if vendor.read_text().strip() == _NVIDIA and (vendor.parent / "class").read_text().startswith(_DISPLAY):
                return True
        except OSError:
            continue
    return False
