"""The architectures of the checkpoints that most runs start from, for plans made where the weights are not."""

import json
import re
from typing import Any

from jaxcxr.interop.config_files import SCHEDULER_CONFIG, model_index, network_config

_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
_UNET_1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
_UNET_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_TEXT_1 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
_TEXT_2 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_V = {"prediction_type": "v_prediction"}

_PUBLISHED: dict[str, tuple[dict, dict, dict]] = {
    r"stable-diffusion-v1-[1-5]": (_UNET_1, _TEXT_1, {}),
    r"stable-diffusion-2(-1)?-base": (_UNET_2 | {"sample_size": 64}, _TEXT_2, {}),
    r"stable-diffusion-2(-1)?": (_UNET_2 | {"sample_size": 96, "upcast_attention": True}, _TEXT_2, _V),
}

NAMES = "stable-diffusion-v1-4, stable-diffusion-v1-5, stable-diffusion-2-1-base, stable-diffusion-2-1"
"""Folders whose contents are known by their names, as their publishers name them; for an error message."""


def files(name: str) -> dict[str, bytes] | None:
    """The configs of a published diffusers folder, without its tokenizer; None for a name that is not known."""
    for pattern, (unet, text, scheduler) in _PUBLISHED.items():
        if re.fullmatch(pattern, name):
            networks: dict[str, dict[str, Any]] = {"unet": unet, "vae": _VAE, "text_encoder": text}
            found = {f"{part}/config.json": network_config(part, config) for part, config in networks.items()}
            found[SCHEDULER_CONFIG] = json.dumps(_SCHEDULER | scheduler, indent=2).encode()
            return found | {"model_index.json": model_index(found)}
    return None
