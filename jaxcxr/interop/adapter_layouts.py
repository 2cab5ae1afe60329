"""How files of adapters name what they hold: a table of layouts, each of which gives the keys of a layer's parts.

A layout is used in one direction alone, from layers to keys: a reader makes the keys of the base's layers and looks
them up. So a name of kohya's, whose underscores may stand for dots, is never taken apart.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

TEXT = "text_encoder."
_MODEL = "text_encoder.text_model."


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kind of file names the parts of an adapter.

    Attributes:
      title: for messages.
      mark: a pattern for where one of its keys begins, which no other layout's key fits.
      endings: of the keys of a part: A, B, alpha or magnitude. The first is the one to write.
      stems: what may stand before an ending for a layer of this full name. The first is the one to write.
    """

    title: str
    mark: str
    endings: Mapping[str, tuple[str, ...]]
    stems: Callable[[str], Iterable[str]]

    def keys(self, layer: str, part: str) -> list[str]:
        """The names that a part of a layer may have; the first is the one to write."""
        return [f"{stem}{ending}" for stem in self.stems(layer) for ending in self.endings.get(part, ())]


def _bare(layer: str) -> list[str]:
    """A layer's name, and for CLIP's also without the inner model's."""
    return list(dict.fromkeys((layer, layer.replace(_MODEL, TEXT, 1))))


def _old(layer: str) -> list[str]:
    """A layer's names in diffusers up to 0.25: under a processor in a U-Net, as the U-Net's in a text encoder."""
    names = [each.removesuffix(".0") if each.endswith(".to_out.0") else each for each in _bare(layer)]
    names += [re.sub(r"(\.attn[12])\.(to_\w+)$", r"\1.processor.\2", each) for each in (*names, layer)]
    names += [re.sub(r"\.([qkv]|out)_proj$", r".to_\1", each) for each in names]
    return list(dict.fromkeys((*_bare(layer), *names)))


def _kohya(layer: str) -> list[str]:
    network, _, name = layer.partition(".")
    if network == "text_encoder":
        # From transformers 5 on a text encoder's own names are without the inner model's.
        bare = [each.removeprefix(TEXT).replace(".", "_") for each in _bare(layer)]
        return [f"{start}_{each}" for each in bare for start in ("lora_te", "lora_te1")]
    return [f"lora_{network}_{name.replace('.', '_')}"]


_MAGNITUDE = (".lora_magnitude_vector",)

LAYOUTS = {
    "peft": Layout(
        "PEFT's",
        r".*\.lora_[AB]\.",
        {"A": (".lora_A.weight",), "B": (".lora_B.weight",), "magnitude": _MAGNITUDE},
        _bare,
    ),
    "diffusers": Layout(
        "older diffusers'",
        r".*(\.lora|_lora|\.lora_linear_layer)\.(down|up)\.",
        {
            "A": (".lora.down.weight", ".lora_linear_layer.down.weight", "_lora.down.weight"),
            "B": (".lora.up.weight", ".lora_linear_layer.up.weight", "_lora.up.weight"),
            "magnitude": _MAGNITUDE,
        },
        _old,
    ),
    "kohya": Layout(
        "kohya's",
        r"lora_(unet|te\d?)_",
        {"A": (".lora_down.weight",), "B": (".lora_up.weight",), "alpha": (".alpha",)},
        _kohya,
    ),
}
"""PEFT's is what diffusers writes and reads today. Its files hold no alpha: B is scaled by alpha / rank."""


def found(keys: Iterable[str]) -> list[str]:
    """The layouts that keys are of, one or several mixed; the names of `LAYOUTS`."""
    every = list(keys)
    return [name for name, layout in LAYOUTS.items() if any(re.match(layout.mark, key) for key in every)]
