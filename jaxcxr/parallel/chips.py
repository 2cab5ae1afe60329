"""What one chip of each kind of hardware can do."""

import dataclasses

from jaxcxr.platforms import GPU_MEMORY

GIB = 2**30
GB, TFLOP = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, from its maker's tables.

    Attributes:
      kind: as a target of `jaxcxr plan` names it.
      memory: bytes of HBM that a program may take.
      bf16, f32: peak FLOP/s of matrix products of that dtype, at JAX's default precision: TPUs multiply float32 in one
        bfloat16 pass, GPUs in TF32.
      bandwidth: bytes/s of HBM.
      links: bytes/s that a chip sends to its neighbours within a slice (ICI) or a node (NVLink), one way, all links.
      network: bytes/s that a chip sends to other slices (DCN) or nodes (InfiniBand), one way.
      dimensions: of a slice's shape; 0 for GPUs.
      most: chips of the largest slice, or of a node.
    """

    kind: str
    memory: int
    bf16: float
    f32: float
    bandwidth: float
    links: float
    network: float
    dimensions: int
    most: int


# Peak FLOP/s, HBM and ICI: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, where ICI counts both ways. Memory is what a
# program gets from libtpu. DCN: jax-ml.github.io/scaling-book/tpus. GPUs: NVIDIA's data sheets of H100 SXM and H200
# (dense; NVLink counts both ways), 400 Gbit/s of InfiniBand each as in DGX systems.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", int(30.75 * GIB), 275 * TFLOP, 275 * TFLOP, 1228 * GB, 300 * GB, 6.25 * GB, 3, 4096),
        Chip("v5e", int(15.75 * GIB), 197 * TFLOP, 197 * TFLOP, 819 * GB, 200 * GB, 3.125 * GB, 2, 256),
        Chip("v5p", int(95.74 * GIB), 459 * TFLOP, 459 * TFLOP, 2765 * GB, 600 * GB, 6.25 * GB, 3, 8960),
        Chip("v6e", int(31.25 * GIB), 918 * TFLOP, 918 * TFLOP, 1638 * GB, 400 * GB, 12.5 * GB, 2, 256),
        Chip("h100", int(GPU_MEMORY * 84_942_979_072), 989 * TFLOP, 494 * TFLOP, 3350 * GB, 450 * GB, 50 * GB, 0, 8),
        Chip("h200", int(GPU_MEMORY * 151_397_597_184), 989 * TFLOP, 494 * TFLOP, 4800 * GB, 450 * GB, 50 * GB, 0, 8),
        # A stand-in, to compare a plan with a run here: it says nothing of speed.
        Chip("cpu", 2**62, TFLOP, TFLOP, 10 * GB, 10 * GB, 10 * GB, 0, 1024),
    )
}

# How a device's `device_kind` begins.
_DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}


def of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None if it is not in the table."""
    return next((CHIPS[kind] for start, kind in _DEVICE_KINDS.items() if device_kind.startswith(start)), None)
