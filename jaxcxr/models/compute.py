"""How a network computes: properties of a run that change neither its values nor its parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxcxr.errors import UserError

M = TypeVar("M", bound=nnx.Module)
Call = TypeVar("Call", bound=Callable[..., jax.Array])

KERNELS = ("auto", "xla", "cudnn", "splash", "sliced")
REMAT = ("none", "blocks", "attention")
GPU = ("gpu", "cuda")
"""What JAX calls the platform of an NVIDIA GPU that is there, and of one that is only compiled for."""

_YNN = "xla_cpu_experimental_ynn_fusion_type"
# YNN's sums are fast: attention with XLA's own takes 1.2 to 1.6 times as long. But what they hold is in no account of
# the compiler's, and is large in a train step, which has many at once: an autoencoder's took 2.99 GB in place of 1.65.
_COMPILER_OPTIONS = {"cpu": {"forward": {_YNN: "LIBRARY_FUSION_TYPE_REDUCE"}, "gradient": {_YNN: ""}}}


def compiler_options(mesh: Mesh, *, gradient: bool = False) -> dict[str, str] | None:
    """What XLA is to compile networks with for the devices of a mesh, as `compiler_options` of `jax.jit`.

    Args:
      mesh: the devices, which need not be here.
      gradient: whether the program has a backward pass.
    """
    platform = mesh.devices.flat[0].platform
    return _COMPILER_OPTIONS.get(platform, {}).get("gradient" if gradient else "forward")


def usual_dtype(platform: str) -> str:
    """What networks compute in to draw, where nothing else is asked for; CPUs are slow in bfloat16."""
    return "float32" if platform == "cpu" else "bfloat16"


@dataclasses.dataclass(frozen=True)
class Compute:
    """What `specialize` sets.

    Attributes:
      attention: the kernel of attention; see `jaxcxr.models.attention_kernels.choose`.
      remat: what the backward pass computes again in place of keeping it: nothing, all inside the residual and
        transformer blocks ("blocks"), or the scores of attention alone ("attention").
      platform: of the devices compiled for, which need not be the ones here: cpu, gpu or tpu.
    """

    attention: str = "auto"
    remat: str = "none"
    platform: str = "cpu"


PORTABLE = Compute(attention="xla")
"""Of a network that was not specialized: what serves on every platform."""


def specialize(network: M, *, attention: str = "auto", remat: str = "none", platform: str) -> M:
    """A network like `network`, which may be abstract, that computes in this way; `network` itself is untouched.

    Names, shapes and values of its parameters stay as they are.

    Args:
      network: one of the networks of this package.
      attention: one of `KERNELS`; a named kernel serves wherever it can, XLA elsewhere.
      remat: one of `REMAT`.
      platform: `platform` of the devices compiled for, `mesh.devices.flat[0].platform`.

    Raises:
      UserError: an unknown value, or a kernel that these devices or this dtype have not.
    """
    for key, value, known in (("attention", attention, KERNELS), ("remat", remat, REMAT)):
        if value not in known:
            raise UserError(f"config.{key}={value!r}: may be {', '.join(known[:-1])} or {known[-1]}")
    if (attention == "cudnn" and platform not in GPU) or (attention == "splash" and platform in GPU):
        wanted = "NVIDIA GPUs" if attention == "cudnn" else "TPUs"
        raise UserError(f"config.attention={attention!r}: runs on {wanted}, the platform here is {platform}; use auto")
    if attention == "cudnn" and getattr(network, "dtype", None) == jnp.float32:
        raise UserError("config.attention='cudnn': has no float32; set config.dtype='bfloat16', or use auto")
    copy = nnx.merge(*nnx.split(network))
    copy.set_attributes(compute=Compute(attention, remat, platform), raise_if_not_found=False)
    return copy


def rematerialized(call: Call) -> Call:
    """Makes a module's `__call__` a block of `remat="blocks"`: of all that it computes only the inputs are kept."""

    @functools.wraps(call)
    def block(self: Any, *inputs: jax.Array | None) -> jax.Array:
        if self.compute.remat != "blocks":
            return call(self, *inputs)
        return jax.checkpoint(functools.partial(call, self))(*inputs)

    return block  # type: ignore[return-value]
