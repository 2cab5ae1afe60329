"""Where a parameter lies in Stable Diffusion's original files, which hold all networks under LDM's own names."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from jaxcxr.errors import UserError
from jaxcxr.models.config import AutoencoderKLConfig, UNet2DConditionConfig

Config = Mapping[str, Any]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
"""What the names of a network's tensors begin with."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the original layout keeps a parameter.

    Attributes:
      key: the name of the tensor there.
      third: which third of the tensor's rows is the parameter, where query, key and value are one; else None.
      pointwise: whether a dense layer's (out, in) is there a 1×1 convolution's (out, in, 1, 1).
    """

    key: str
    third: int | None = None
    pointwise: bool = False


def place(network: str, name: str, config: Config) -> Place:
    """Where the original layout keeps a parameter.

    Args:
      network: unet, vae or text_encoder.
      name: the parameter's PyTorch name in the network, e.g. `down_blocks.0.resnets.0.conv1.weight`.
      config: the network's `config.json`.

    Raises:
      UserError: the layout has no place for it.
    """
    module, _, leaf = name.rpartition(".")
    try:
        match network:
            case "unet":
                return Place(f"{PREFIXES[network]}{_unet(module, UNet2DConditionConfig.from_dict(config))}.{leaf}")
            case "vae":
                found = f"{PREFIXES[network]}{_vae(module, AutoencoderKLConfig.from_dict(config))}.{leaf}"
                return Place(found, pointwise=".attentions.0.to_" in name and leaf == "weight")
        return _text_encoder(module, leaf, config)
    except KeyError as error:
        raise UserError(
            f"{network}.{name}: Stable Diffusion's original layout has no place for it; use a diffusers folder"
        ) from error


def is_open_clip(config: Config) -> bool:
    """Whether files of the original layout hold such a text encoder as OpenCLIP's (SD 2) and not as CLIP's (SD 1).

    Raises:
      UserError: it is not a CLIP, which no file of that layout can hold.
    """
    if (model_type := config.get("model_type", "clip_text_model")) not in ("clip", "clip_text_model"):
        raise UserError(
            f"text_encoder/config.json: model_type {model_type!r} has no place in Stable Diffusion's original layout,"
            " which holds CLIP alone; use a diffusers folder"
        )
    return config.get("hidden_act", "quick_gelu") != "quick_gelu"


def _unet(module: str, config: UNet2DConditionConfig) -> str:
    layers = config.per_block("layers_per_block")
    match module.split("."):
        case ["mid_block", kind, index, *rest] if config.mid_block_type == "UNetMidBlock2DCrossAttn":
            return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{_layer(kind, rest)}"
        case ["down_blocks", level, kind, index, *rest]:
            before = 1 + sum(count + 1 for count in layers[: int(level)])
            if kind == "downsamplers":
                return f"input_blocks.{before + layers[int(level)]}.0.op"
            _require_transformer(kind, config.down_block_types[int(level)])
            return f"input_blocks.{before + int(index)}.{int(kind == 'attentions')}.{_layer(kind, rest)}"
        case ["up_blocks", block, kind, index, *rest]:
            inwards = layers[::-1]
            before = sum(count + 1 for count in inwards[: int(block)])
            block_type = config.up_block_types[int(block)]
            if kind == "upsamplers":
                # It is the last of its group, after the attention where there is one.
                return f"output_blocks.{before + inwards[int(block)]}.{1 + ('Attn' in block_type)}.conv"
            _require_transformer(kind, block_type)
            return f"output_blocks.{before + int(index)}.{int(kind == 'attentions')}.{_layer(kind, rest)}"
    return _UNET_ENDS[module]


def _layer(kind: str, rest: list[str]) -> str:
    return ".".join(rest) if kind == "attentions" else _RESNET[".".join(rest)]


def _require_transformer(kind: str, block_type: str) -> None:
    if kind == "attentions" and not block_type.startswith("CrossAttn"):
        raise KeyError(block_type)  # LDM's plain attention keeps its heads in another order


def _vae(module: str, config: AutoencoderKLConfig) -> str:
    if module in ("quant_conv", "post_quant_conv"):
        return module
    half, *inner = module.split(".")
    match inner:
        case ["conv_in" | "conv_out"]:
            return module
        case ["conv_norm_out"]:
            return f"{half}.norm_out"
        case ["mid_block", "resnets", index, layer]:
            return f"{half}.mid.block_{int(index) + 1}.{_vae_layer(layer)}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"{half}.mid.attn_1.{_VAE_ATTENTION['.'.join(rest)]}"
        case ["down_blocks", level, "resnets", index, layer]:
            return f"{half}.down.{level}.block.{index}.{_vae_layer(layer)}"
        case ["down_blocks", level, "downsamplers", "0", "conv"]:
            return f"{half}.down.{level}.downsample.conv"
        case ["up_blocks", block, "resnets", index, layer]:
            return f"{half}.up.{_up(block, config)}.block.{index}.{_vae_layer(layer)}"
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            return f"{half}.up.{_up(block, config)}.upsample.conv"
    raise KeyError(module)


def _up(block: str, config: AutoencoderKLConfig) -> int:
    return len(config.block_out_channels) - 1 - int(block)  # LDM counts from the image


def _vae_layer(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


def _text_encoder(module: str, leaf: str, config: Config) -> Place:
    if not is_open_clip(config):
        return Place(f"{PREFIXES['text_encoder']}transformer.{module}.{leaf}")
    prefix = f"{PREFIXES['text_encoder']}model."
    match module.removeprefix("text_model.").split("."):
        case ["embeddings", "token_embedding"]:
            return Place(f"{prefix}token_embedding.{leaf}")
        case ["embeddings", "position_embedding"]:
            return Place(f"{prefix}positional_embedding")
        case ["final_layer_norm"]:
            return Place(f"{prefix}ln_final.{leaf}")
        case ["encoder", "layers", index, *rest]:
            block, layer = f"{prefix}transformer.resblocks.{index}", ".".join(rest)
            if layer in _FUSED:
                return Place(f"{block}.attn.in_proj_{leaf}", third=_FUSED.index(layer))
            return Place(f"{block}.{_OPEN_CLIP_LAYER[layer]}.{leaf}")
    raise KeyError(module)


def ema_key(key: str) -> str:
    """The name of the average of the U-Net's tensor `key`: its own without the dots, after `model_ema.`."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


_IGNORED = (
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    # What pools, which conditioning does not.
    "cond_stage_model.transformer.text_projection.",
    "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.logit_scale",
    "cond_stage_model.model.text_projection",
    "cond_stage_model.model.logit_scale",
    "cond_stage_model.model.attn_mask",
    # What only training the autoencoder needs.
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
)


def is_ignored(key: str, text_config: Config | None) -> bool:
    """Whether a tensor under one of `PREFIXES` is one that no network here has a use for.

    `text_config` is the text encoder's `config.json`. Of an OpenCLIP the layer after its last is ignored too, for
    SD 2 conditions on the last but one.
    """
    last: tuple[str, ...] = ()
    if text_config is not None and is_open_clip(text_config):
        last = (f"cond_stage_model.model.transformer.resblocks.{text_config['num_hidden_layers']}.",)
    return key.startswith((*_IGNORED, *last))


_FAMILIES = (
    ("ControlNet", ("control_model.",)),
    ("Stable Diffusion 3", ("model.diffusion_model.joint_blocks.", "joint_blocks.")),
    ("Flux", ("model.diffusion_model.double_blocks.", "double_blocks.")),
    ("Stable unCLIP", ("noise_augmentor.", "embedder.model.")),
    ("Stable Diffusion XL", ("conditioner.embedders.", "model.diffusion_model.label_emb.0.")),
)


def other_family(keys: Mapping[str, Any]) -> str | None:
    """The name of the family that tensors of these names belong to, if it is not Stable Diffusion 1 or 2."""
    if any(".time_stack." in key for key in keys):
        return "Stable Video Diffusion"
    for (family, starts), key in itertools.product(_FAMILIES, keys):
        if key.startswith(starts):
            return family
    return None
