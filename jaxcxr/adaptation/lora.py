"""Low-rank adaptation: W + (alpha / rank) A B (Hu et al. 2021, arXiv 2106.09685), and DoRA's magnitudes.

DoRA gives each output of a layer a magnitude of its own, m V / ‖V‖ with V = W + (alpha / rank) A B; for gradients the
norm counts as constant (Liu et al. 2024, arXiv 2402.09353).

The names and axes of A and B are those of kernels, so that they go to PEFT's files as kernels go to diffusers'.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec

from jaxcxr.errors import UserError
from jaxcxr.parsing import convert

MAGNITUDE = "lora_magnitude_vector"


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.lora`.

    Attributes:
      rank: columns of A; 0: no adapter.
      alpha: the product is scaled by alpha / rank; 0: by 1.
      targets: a regular expression for the whole names of layers, of those with a kernel.
      dora: of which of them magnitudes are learnt too, in the same way; empty: of none.
    """

    rank: Annotated[int, msgspec.Meta(ge=0, le=2**16)] = 0
    alpha: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    targets: str = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)"
    dora: str = ""

    @property
    def scale(self) -> float:
        """What the product A B is multiplied by."""
        return self.alpha / self.rank if self.alpha else 1.0


def adapted(kernel: Any, a: Any, b: Any, scale: float, magnitude: Any = None) -> jax.Array:
    """A kernel with its adapter in it, float32: W + scale A B, or with magnitudes m V / ‖V‖ of that.

    Args:
      kernel: (in, out) or (H, W, in, out).
      a: (in, rank) or (H, W, in, rank).
      b: (rank, out) or (1, 1, rank, out).
      scale: of the product.
      magnitude: (out,), or None.
    """
    # A small change is not rounded more than its kernel, on accelerators too.
    exact = jax.lax.Precision.HIGHEST
    change = jnp.einsum(
        "...r,ro->...o", a, b.reshape(b.shape[-2:]), precision=exact, preferred_element_type=jnp.float32
    )
    changed = jnp.asarray(kernel, jnp.float32) + scale * change
    return changed if magnitude is None else changed * (magnitude / jax.lax.stop_gradient(_norm(changed)))


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapters of some layers.

    Attributes:
      chosen: how.
      layers: their names.
      magnitudes: those of them with magnitudes.
    """

    chosen: Settings
    layers: tuple[str, ...]
    magnitudes: frozenset[str]

    @property
    def changes(self) -> frozenset[str]:
        """The layers' kernels."""
        return frozenset(f"{layer}.kernel" for layer in self.layers)

    def start(self, parameters: Mapping[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        """A normal with deviation 1 / rank, B zero, magnitudes the kernel's own: nothing is changed yet."""
        learnt: dict[str, jax.Array] = {}
        for number, layer in enumerate(self.layers):
            kernel, rank = parameters[f"{layer}.kernel"], self.chosen.rank
            shape = (*kernel.shape[:-1], rank)
            normal = jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)
            learnt[f"{layer}.lora_A.kernel"] = normal / rank
            learnt[f"{layer}.lora_B.kernel"] = jnp.zeros((*(1,) * (kernel.ndim - 2), rank, kernel.shape[-1]))
            if layer in self.magnitudes:
                learnt[f"{layer}.{MAGNITUDE}"] = _norm(jnp.asarray(kernel, jnp.float32))
        return learnt

    def merge(self, name: str, learnt: Mapping[str, Any], parameters: Mapping[str, Any]) -> jax.Array:
        """A layer's kernel with its adapter in it, float32."""
        layer = name.removesuffix(".kernel")
        a, b = learnt[f"{layer}.lora_A.kernel"], learnt[f"{layer}.lora_B.kernel"]
        magnitude = learnt[f"{layer}.{MAGNITUDE}"] if layer in self.magnitudes else None
        return adapted(parameters[name], a, b, self.chosen.scale, magnitude)

    def project(self, learnt: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: an adapter has no bounds."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The section of the config."""
        return dataclasses.asdict(self.chosen)


def of(config: Any, parameters: Mapping[str, Any]) -> LoRA | None:
    """The adapters of `config.lora`, None where its rank is 0.

    Raises:
      UserError: a setting is out of its range, or a pattern is none or selects no layer.
    """
    return make(convert(config.lora.to_dict(), Settings, "config.lora"), parameters) if config.lora.rank else None


def make(chosen: Settings, parameters: Mapping[str, Any]) -> LoRA:
    """Adapters of the layers with such parameters, arrays or shapes.

    Raises:
      UserError: a pattern is none, or selects no layer.
    """
    layers = [name.removesuffix(".kernel") for name in parameters if name.endswith(".kernel")]
    chosen_layers = _matching(layers, "targets", chosen.targets)
    magnitudes = frozenset(_matching(chosen_layers, "dora", chosen.dora)) if chosen.dora else frozenset()
    return LoRA(chosen, tuple(chosen_layers), magnitudes)


def read(settings: Any, parameters: Mapping[str, Any]) -> LoRA:
    """The adapters of a file's settings.

    Raises:
      UserError: as `make`.
    """
    return make(convert(settings, Settings, "adaptation.json: lora"), parameters)


def owns(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return name.endswith((".lora_A.kernel", ".lora_B.kernel", f".{MAGNITUDE}"))


def _matching(layers: list[str], key: str, pattern: str) -> list[str]:
    try:
        found = [layer for layer in layers if re.fullmatch(pattern, layer)]
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"config.lora.{key}={pattern!r}: not a regular expression ({error})") from error
    if not found:
        raise UserError(f"config.lora.{key}={pattern!r}: no layer has such a name; names are like {layers[0]}")
    return found


def _norm(kernel: Any) -> jax.Array:
    """The length of each output's weights, (out,)."""
    return jnp.sqrt(jnp.square(kernel).sum(tuple(range(kernel.ndim - 1))))
