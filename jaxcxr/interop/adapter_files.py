"""Files of adapters: LoRA and DoRA as PEFT, diffusers and kohya's scripts write them.

In every layout A and B are a layer's own kind of weight, so they go to a file as kernels do (`layout.py`).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.files import new_file, new_folder
from jaxcxr.interop import adapter_layouts
from jaxcxr.interop.adapter_layouts import LAYOUTS, TEXT, Layout
from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.interop.tensors import Tensor, Tensors, is_floating, open_safetensors, read_metadata, write_safetensors

FILE = "pytorch_lora_weights.safetensors"
"""The file of a folder that diffusers writes and looks for."""

_OTHER = "it is an adapter of another base"
_MERGED = "give --to diffusers, which merges it"
# Of a text encoder's layers diffusers looks for adapters in a CLIP's attention, and tells a file's layout by them.
_CLIP_ATTENTION = re.compile(r".*\.self_attn\.(q|k|v|out)_proj")


@dataclasses.dataclass(frozen=True)
class Layer:
    """The adapter of one layer.

    Attributes:
      a: (in, rank) or (H, W, in, rank).
      b: (rank, out) or (1, 1, rank, out).
      scale: what the product A B is multiplied by, alpha / rank.
      magnitude: (out,), or None; see `adaptation.lora`.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The columns of A."""
        return self.a.shape[-1]


Adapter = Mapping[str, Layer]
"""By the full names of layers of a base: `unet.….attn1.to_q`."""


@dataclasses.dataclass(frozen=True)
class _Alphas:
    """What diffusers' `lora_adapter_metadata` says of one network's alphas, in the words of PEFT's LoraConfig."""

    lora_alpha: float
    alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """Of a layer, by its name in the network: the pattern is such a name, or the end of one."""
        ends = {each.removeprefix("^"): alpha for each, alpha in self.alpha_pattern.items()}
        alpha = next((ends[end] for end in ends if f".{layer}".endswith(f".{end}")), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _alphas(file: Path, layout: Layout) -> dict[str, _Alphas]:
    """The alphas of a file's metadata by network; diffusers' files of before 0.35 have none, and B has it all."""
    said = read_metadata(file).get("lora_adapter_metadata")
    if said is None or "alpha" in layout.endings:
        return {}
    where = f"{file}: lora_adapter_metadata"
    values: dict[str, Any] = parsing.parse_json(said, dict[str, Any], where)
    networks: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        network, _, name = key.partition(".")
        networks.setdefault(network, {})[name] = value
    found: dict[str, _Alphas] = {
        network: parsing.convert(settings, _Alphas, f"{where}: {network}")
        for network, settings in networks.items()
        if "lora_alpha" in settings
    }
    for network, each in found.items():
        for pattern in each.alpha_pattern:
            if not re.fullmatch(r"\^?[\w.]+", pattern):
                raise UserError(f"{where}: {network}.alpha_pattern has {pattern!r:.100}, which is no name of a layer")
    return found


def read(file: Path, base: Tensors) -> dict[str, Layer]:
    """Opens a .safetensors file of one of the `LAYOUTS`; `base` are the parameters of what it is for.

    Raises:
      UserError: it is of none of them or of several, has a part that is not read, or does not fit the base.
    """
    tensors = open_safetensors(file)
    layout = _layout(file, tensors)
    layers = [name.removesuffix(".kernel") for name in base if name.endswith(".kernel")]
    places = {key: (layer, part) for part in layout.endings for layer in layers for key in layout.keys(layer, part)}
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in sorted(tensors.items()):
        if key not in places:
            raise _unknown(file, key, layout)
        if not is_floating(tensor.dtype):
            raise UserError(f"{file}: {key} is {tensor.dtype}; an adapter's weights are floating-point numbers")
        layer, part = places[key]
        if part in parts.setdefault(layer, {}):
            raise UserError(f"{file}: has {key} and {parts[layer][part][0]}, which are the same; keep one of them")
        parts[layer][part] = key, tensor.require_finite(f"{file}: {key}")
    alphas = _alphas(file, layout)
    return {layer: _layer(file, layer, found, base, alphas) for layer, found in parts.items()}


def _layout(file: Path, tensors: Tensors) -> Layout:
    found = adapter_layouts.found(tensors)
    if len(found) > 1:
        keys = [next(key for key in sorted(tensors) if re.match(LAYOUTS[name].mark, key)) for name in found[:2]]
        raise UserError(
            f"{file}: mixes the layouts of adapters: {keys[0]} is {LAYOUTS[found[0]].title}, {keys[1]}"
            f" {LAYOUTS[found[1]].title}; keep each in a file of its own"
        )
    if not found:
        titles = ", ".join(layout.title for layout in LAYOUTS.values())
        raise UserError(
            f"{file}: is no adapter of a layout that is read, which are {titles}; its first tensor is"
            f" {min(tensors, default='none')}"
        )
    return LAYOUTS[found[0]]


def _unknown(file: Path, key: str, layout: Layout) -> UserError:
    if key.endswith(".dora_scale"):
        return UserError(
            f"{file}: has kohya's magnitudes of DoRA, {key}, which are not read; take the same adapter in PEFT's layout"
        )
    if key.endswith(tuple(ending for endings in layout.endings.values() for ending in endings)):
        return UserError(f"{file}: {key} is of a layer that the base does not have; {_OTHER}")
    return UserError(f"{file}: {key} is no part of a LoRA; LoHa, LoKr, biases and others are not read")


def _layer(
    file: Path, layer: str, found: Mapping[str, tuple[str, Tensor]], base: Tensors, alphas: Mapping[str, _Alphas]
) -> Layer:
    for part in "AB":
        if part not in found:
            raise UserError(
                f"{file}: has {next(iter(found.values()))[0]}, but no {part} beside it; copy the file again"
            )
    names = {part: key for part, (key, _) in found.items()}
    a, b = (from_torch(f"{layer}.lora_{part}.weight", _weight(file, *found[part]))[1] for part in "AB")
    magnitude = None
    if "magnitude" in found:
        magnitude = found["magnitude"][1].map(lambda array: array.reshape(-1))
    rank = max(a.shape[-1], 1)
    if "alpha" in found:
        scale = _number(file, *found["alpha"]) / rank
    else:
        network, _, name = layer.partition(".")
        scale = alphas[network].scale(name, rank) if network in alphas else 1.0
    made = Layer(a, b, scale, magnitude)
    check_shapes(file, layer, made, base, names)
    return made


def _weight(file: Path, key: str, tensor: Tensor) -> Tensor:
    if tensor.ndim not in (2, 4):
        raise UserError(f"{file}: {key} has shape {tensor.shape}; a LoRA's parts have 2 axes or 4; {_OTHER}")
    return tensor


def _number(file: Path, key: str, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1:
        raise UserError(f"{file}: {key} has shape {tensor.shape}; it is one number; copy the file again")
    return float(tensor.read().reshape(()))


def check_shapes(path: Path, layer: str, found: Layer, base: Tensors, names: Mapping[str, str]) -> None:
    """Raises UserError where an adapter does not fit the layer; `names` are those of its parts in the file."""
    if f"{layer}.kernel" not in base:
        raise UserError(f"{path}: has an adapter of {layer}, which the base does not have; {_OTHER}")
    *inner, inputs, outputs = base[f"{layer}.kernel"].shape
    a, b = (*inner, inputs, found.rank), (*[1] * len(inner), found.rank, outputs)
    for part, tensor, wanted in (("A", found.a, a), ("B", found.b, b)):
        if tensor.shape != wanted or not found.rank:
            as_stored = [to_torch("x.kernel", np.broadcast_to(0, shape))[1].shape for shape in (tensor.shape, wanted)]
            raise UserError(
                f"{path}: {names[part]} has shape {as_stored[0]}, the base's layer takes {as_stored[1]}; {_OTHER}"
            )
    if found.magnitude is not None and found.magnitude.shape != (outputs,):
        count = found.magnitude.shape[0]
        raise UserError(f"{path}: {layer} has {count} magnitudes, the base's layer {outputs} outputs; {_OTHER}")


def write(adapter: Adapter, path: str | Path, layout: str, *, dtype: Any = None, card: bytes | None = None) -> Path:
    """Writes an adapter as diffusers' `load_lora_weights` reads it, whole or not at all.

    PEFT's layout has no place for alpha, so B is scaled by alpha / rank, exactly for magnitudes too. Older readers know
    nothing of the metadata that newer ones take alpha from.

    Args:
      adapter: of U-Net and text encoder.
      path: a new .safetensors file, or a new folder that gets `FILE`.
      layout: peft or kohya.
      dtype: to cast to; each tensor keeps its own if None.
      card: the folder's README.md.

    Returns:
      The file.

    Raises:
      UserError: the layout, or diffusers, has no place for a part of it; `path` exists or cannot be written.
    """
    path = Path(path)
    _check_place(adapter, layout)
    tensors = dict(_named(adapter, LAYOUTS[layout]))
    if path.suffix == ".safetensors":
        with new_file(path) as partial:
            write_safetensors(partial, tensors, dtype=dtype)
        return path
    with new_folder(path) as folder:
        write_safetensors(folder / FILE, tensors, dtype=dtype)
        if card is not None:
            (folder / "README.md").write_bytes(card)
    return path / FILE


def _named(adapter: Adapter, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by their keys."""
    has_alpha = "alpha" in layout.endings
    for layer, each in adapter.items():
        b = each.b if has_alpha else _scaled(each.b, each.scale)
        for part, tensor in (("A", each.a), ("B", b)):
            yield layout.keys(layer, part)[0], to_torch(f"{layer}.kernel", tensor)[1]
        if has_alpha:
            yield layout.keys(layer, "alpha")[0], Tensor.of(np.array(each.scale * each.rank, np.float32))
        if each.magnitude is not None:
            shaped = each.magnitude.map(_of_convolution) if each.a.ndim == 4 else each.magnitude
            yield layout.keys(layer, "magnitude")[0], shaped


def _of_convolution(magnitude: np.ndarray) -> np.ndarray:
    return magnitude.reshape(1, -1, 1, 1)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return tensor
    return Tensor(tensor.shape, np.dtype(np.float32), lambda: np.asarray(tensor.read(), np.float32) * np.float32(scale))


def _check_place(adapter: Adapter, layout: str) -> None:
    """Raises UserError for what a file of this layout cannot hold, or diffusers would not read out of it."""
    if other := [layer for layer in adapter if not layer.startswith(("unet.", TEXT))]:
        raise UserError(f"{other[0]}: files of adapters have no place for this network's; {_MERGED}")
    magnitudes = [layer for layer, each in adapter.items() if each.magnitude is not None]
    if magnitudes and layout == "kohya":
        raise UserError(f"{magnitudes[0]}: diffusers reads no magnitudes of DoRA in kohya's layout; give --to lora")
    if text := [layer for layer in magnitudes if layer.startswith(TEXT)]:
        raise UserError(f"{text[0]}: diffusers reads no magnitudes of a text encoder; {_MERGED}")
    without = [layer for layer, each in adapter.items() if layer.startswith("unet.") and each.magnitude is None]
    if magnitudes and without:
        raise UserError(
            f"{without[0]}: has no magnitudes, {magnitudes[0]} has; diffusers reads them for all of a U-Net's adapters"
            f" or for none; {_MERGED}"
        )
    text = [layer for layer in adapter if layer.startswith(TEXT)]
    if text and not any(_CLIP_ATTENTION.fullmatch(layer) for layer in text):
        raise UserError(
            f"{text[0]}: diffusers reads a text encoder's adapters with those of a CLIP's attention; {_MERGED}"
        )
