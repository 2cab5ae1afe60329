"""Hardware to plan for: what a target's name means, what its chips can do, and their devices for the compiler."""

import contextlib
import dataclasses
import importlib.metadata
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from jaxcxr import platforms
from jaxcxr.errors import UserError
from jaxcxr.parallel.chips import CHIPS, Chip

CUDA = "/usr/local/cuda"
"""Where XLA looks for the CUDA toolkit besides PATH."""


# Of v5e and v6e: cloud.google.com/tpu/docs/{v5e,v6e}.
_FLAT_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips of one kind: `slices` (nodes, for GPUs) of `shape` each."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written: v5e:4x4, v5e:16x16*4, h100:8, h100:2x8."""
        sizes = "x".join(map(str, self.shape))
        if not self.chip.dimensions:
            return f"{self.chip.kind}:{self.slices}x{sizes}" if self.slices > 1 else f"{self.chip.kind}:{sizes}"
        return f"{self.chip.kind}:{sizes}" + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        """Of all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def platform(self) -> str:
        """The compiler's name: tpu, cuda or cpu."""
        if self.chip.kind == "cpu":
            return "cpu"
        return "tpu" if self.chip.dimensions else "cuda"


def parse(name: str) -> Target:
    """Reads a target: `v5e:4x4`, `v5e:16x16*4` (four slices), `h100:8`, `h200:2x8` or `h200:16` (two nodes), `cpu:4`.

    Raises:
      UserError: there is no such chip, or it does not come in that shape.
    """
    kind, _, shape = name.partition(":")
    if meant := _counted(name):
        raise UserError(f"--target {name}: a target is written CHIP:SHAPE; give --target {meant.name}")
    if kind not in CHIPS:
        raise UserError(f"--target {name}: no such chip; there are {', '.join(CHIPS)}, as in v5e:4x4 or h100:8")
    chip = CHIPS[kind]
    example = {3: f"{kind}:2x2x2", 2: f"{kind}:4x4", 0: f"{kind}:8"}[chip.dimensions]
    found = re.fullmatch(r"(\d{1,6}(?:x\d{1,6}){0,3})(?:\*(\d{1,6}))?", shape)
    sizes = tuple(map(int, found[1].split("x"))) if found else ()
    if not found or not all(sizes) or (found[2] is not None and int(found[2]) < 1):
        raise UserError(f"--target {name}: after the colon goes a shape, as in {example}")
    slices = int(found[2] or 1)
    if not chip.dimensions:
        if found[2] is not None or len(sizes) > 2 or (kind == "cpu" and len(sizes) > 1):
            raise UserError(f"--target {name}: give {example}, or NODESxGPUS as in h100:2x8")
        if kind == "cpu" and sizes[0] > chip.most:
            raise UserError(f"--target {name}: at most {chip.most}")
        slices, sizes = (sizes[0], sizes[1:]) if len(sizes) == 2 else (1, sizes)
        if slices == 1 and sizes[0] > chip.most and sizes[0] % chip.most == 0:
            slices, sizes = sizes[0] // chip.most, (chip.most,)  # whole nodes
        if sizes[0] > chip.most:
            raise UserError(f"--target {name}: a node has at most {chip.most}; several are {kind}:NODESx{chip.most}")
        return Target(chip, sizes, slices)
    if len(sizes) != chip.dimensions:
        raise UserError(f"--target {name}: a slice of {kind} has {chip.dimensions} sizes, as in {example}")
    if math.prod(sizes) > chip.most:
        raise UserError(f"--target {name}: a slice of {kind} has at most {chip.most} chips; several are {example}*2")
    if len(sizes) == 2 and sizes not in _FLAT_SLICES:
        there = ", ".join("x".join(map(str, shape)) for shape in _FLAT_SLICES)
        raise UserError(f"--target {name}: no such slice of {kind}; there are {there}")
    if len(sizes) == 3 and not _is_block(sizes):
        rule = "1x1x1, and sizes that are 2 or multiples of 4, the last also 1"
        raise UserError(f"--target {name}: no such slice; of {kind} there is {rule}: {example}")
    return Target(chip, sizes, slices)


_COUNTED = re.compile(r"(v\d+[a-z]*|[a-z]+\d+)-(\d{1,6})")
_KINDS = {"v5litepod": "v5e", "v5lite": "v5e"}
_CORES = ("v4", "v5p")  # whose names count cores, two a chip


def _counted(name: str) -> Target | None:
    """The target that a name such as v5e-16, v5p-8 or h100-8 means, as clouds write them; None if it is of no such."""
    found = _COUNTED.fullmatch(name)
    kind = _KINDS.get(found[1], found[1]) if found else ""
    if found is None or kind not in CHIPS:
        return None
    count, chip = int(found[2]) // (2 if kind in _CORES else 1), CHIPS[kind]
    flat = [shape for shape in _FLAT_SLICES if math.prod(shape) == count]
    if chip.dimensions == 2 and flat:
        return Target(chip, flat[0])
    if chip.dimensions == 3 and count in (1, 4):
        return Target(chip, (1, 1, 1) if count == 1 else (2, 2, 1))
    several = count % chip.most == 0 and count > chip.most  # nodes, of GPUs
    if chip.dimensions == 0 and (0 < count <= chip.most or several):
        return Target(chip, (min(count, chip.most),), max(1, count // chip.most))
    if chip.dimensions == 3 and 8 <= count <= chip.most and count & (count - 1) == 0:
        return larger(kind, count)
    return None


def _is_block(sizes: tuple[int, ...]) -> bool:
    fits = [size == 2 or size % 4 == 0 for size in sizes]
    return math.prod(sizes) == 1 or (all(fits[:2]) and (fits[2] or sizes[2] == 1))


def larger(kind: str, chips: int) -> Target:
    """The target of `chips` chips, a power of two of at least 8, in the most cubic shape that can be had."""
    chip = CHIPS[kind]
    if not chip.dimensions:
        return Target(chip, (min(chips, chip.most),), max(1, chips // chip.most))
    within = min(chips, chip.most)
    exponent = within.bit_length() - 1
    shape = sorted(2 ** ((exponent + axis) // chip.dimensions) for axis in range(chip.dimensions))
    return Target(chip, tuple(shape), max(1, chips // within))


def check_compiler(target: Target) -> None:
    """Sees to it that the compiler for a target is installed.

    Raises:
      UserError: it is not.
    """
    needed = {"tpu": ("libtpu", "plan-tpu"), "cuda": ("jax-cuda12-pjrt", "plan-cuda"), "cpu": ("jax", "")}
    package, extra = needed[target.platform]
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"--target {target.name}: its compiler is not here: pip install 'jaxcxr[{extra}]'") from None
    # XLA's last steps for GPUs are NVIDIA's programs, which no Python package has all of.
    missing = [] if target.platform != "cuda" else [name for name in ("ptxas", "nvlink") if _cuda_program(name) is None]
    if missing:
        raise UserError(
            f"--target {target.name}: {' and '.join(missing)} of the CUDA toolkit not found;"
            " install it in /usr/local/cuda, or put its bin/ on PATH"
        )


def _cuda_program(name: str) -> str | None:
    found = shutil.which(name) or shutil.which(name, path=f"{CUDA}/bin")
    # What lies on PATH may be a link or a wrapper to a toolkit that is gone.
    return found if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0 else None


def environment(target: Target) -> dict[str, str]:
    """What a process must have in its environment, before JAX starts, to compile for hardware that is not there."""
    settings = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if target.platform == "cpu":
        settings["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={target.chips}"
    if target.platform == "tpu":
        # libtpu looks for a TPU's host, and complains, unless one is named.
        settings |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        settings |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    return settings


def devices(target: Target) -> list[Any]:
    """The target's devices, which can be compiled for and hold nothing; in a process that has its `environment`."""
    import jax
    from jax.experimental import topologies

    if target.platform == "cpu":
        return jax.devices("cpu")[: target.chips]
    if target.platform == "cuda":
        platforms.with_cuda_compiler()
        jax.devices()  # loads the plug-ins
        nodes = f"1x{target.slices}x{target.shape[0]}"
        description = topologies.get_topology_desc(platform="cuda", topology=nodes, target_config=_gpu(target.chip))
        return list(description.devices)
    options: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
    if math.prod(target.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if target.chip.kind == "v4":
        options["chip_config_name"] = "megacore"  # both of a chip's cores as one device, as JAX has it there
    sizes = "x".join(map(str, target.shape))
    return list(topologies.get_topology_desc(f"{target.chip.kind}:{sizes}", "tpu", **options).devices)


@contextlib.contextmanager
def pretended(target: Target) -> Iterator[None]:
    """Within it JAX traces attention for cuDNN as if that were installed; it asks for a version and a GPU."""
    if target.platform != "cuda":
        yield
        return
    from unittest import mock

    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # no public way round the questions

    answers: dict[str, Any] = {
        "check_cudnn_version": lambda: 91_000,
        "check_compute_capability": lambda capability: float(capability) <= 9.0,
        "is_cuda_compute_capability_equal": lambda capability: float(capability) == 9.0,
    }
    with mock.patch.multiple(cudnn, **answers):
        yield


def _gpu(chip: Chip) -> str:
    """A GpuTargetConfigProto of Hopper, for XLA's CUDA compiler: sizes from the CUDA programming guide's tables."""
    name, memory = {
        "h100": ("NVIDIA H100 80GB HBM3", 84_942_979_072),
        "h200": ("NVIDIA H200", 151_397_597_184),
    }[chip.kind]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)}  l2_cache_size: 52428800  device_memory_size: {memory}
  device_address_bits: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
