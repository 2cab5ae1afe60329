"""The config files of a pipeline: which networks they describe, and those that are written for others to read."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from flax import nnx
from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.models import config as configs
from jaxcxr.models import text_config
from jaxcxr.models.bert import BertModel
from jaxcxr.models.classifier import ARCHITECTURES, architecture_class
from jaxcxr.models.clip import CLIPTextModel
from jaxcxr.models.controlnet import ControlNetModel
from jaxcxr.models.discriminator import PatchDiscriminator
from jaxcxr.models.features.lpips import LpipsModel
from jaxcxr.models.unet import UNet2DConditionModel
from jaxcxr.models.vae import AutoencoderKL

NETWORKS = ("unet", "vae", "text_encoder")
"""The networks by the names of their folders, which begin the names of their parameters."""

TEACHER, TEACHER_TOKENIZER = "teacher", "teacher_tokenizer"
"""The text encoder that another one learns from, and its tokenizer; a run has them, a published pipeline does not."""

CLASSIFIER = "classifier"
"""A classifier of images, which is by itself."""

CONTROLNET = "controlnet"
"""What adds a condition image to a U-Net; it is published beside the pipeline, or by itself."""

LPIPS, DISCRIMINATOR = "lpips", "discriminator"
"""Networks of an autoencoder's loss: a distance of images, frozen, and a discriminator, which learns."""

PUBLISHED = (*NETWORKS, CLASSIFIER, CONTROLNET)
"""Every network that is published under its name."""

UNPUBLISHED = (TEACHER, LPIPS, DISCRIMINATOR)
"""Networks that a run has and a published pipeline has not."""

_CLASSES: dict[str, type[nnx.Module]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    CONTROLNET: ControlNetModel,
    LPIPS: LpipsModel,
    DISCRIMINATOR: PatchDiscriminator,
}
_TEXT_ENCODERS: dict[str, tuple[type[nnx.Module], str, str]] = {
    "clip_text_model": (CLIPTextModel, "CLIPTextModel", "CLIPTokenizer"),
    "clip": (CLIPTextModel, "CLIPTextModel", "CLIPTokenizer"),
    "bert": (BertModel, "BertModel", "BertTokenizer"),
    "roberta": (BertModel, "RobertaModel", "RobertaTokenizer"),
}
"""By `model_type`: the class here, and those of transformers for encoder and tokenizer."""

_CONFIGS: dict[Any, Any] = {
    UNet2DConditionModel: configs.UNet2DConditionConfig,
    AutoencoderKL: configs.AutoencoderKLConfig,
    ControlNetModel: configs.ControlNetConfig,
    LpipsModel: configs.LpipsConfig,
    PatchDiscriminator: configs.DiscriminatorConfig,
    CLIPTextModel: text_config.CLIPTextConfig,
    BertModel: text_config.BertConfig,
    **dict.fromkeys(ARCHITECTURES.values(), configs.ClassifierConfig),
}
_DIFFUSERS = "0.35.0"  # the version whose configs are written
_LIBRARIES = ("diffusers", "transformers", "maxdiffusion")
_Part = Annotated[tuple[str | None, ...], Meta(min_length=2, max_length=2)] | None
_UNET_ALONE = {"sample_size", "out_channels", "center_input_sample", "conv_in_kernel", "conv_out_kernel"}
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


def parse_object(name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
      UserError: it is none, with `name`.
    """
    # diffusers writes a scheduler's -Infinity as Python does.
    return parsing.parse_json(data, dict[str, Any], name, remedy="copy the file again", nan=name == SCHEDULER_CONFIG)


def network_config_of(name: str, config: bytes) -> Any:
    """The configuration in the `config.json` of the network `name`, checked.

    Raises:
      UserError: it is of another family or asks for what is not implemented.
    """
    architecture = parse_object(f"{name}/config.json", config)
    return _CONFIGS[network_class(name, architecture)].from_dict(architecture)


def network_class(name: str, config: Mapping[str, Any]) -> type[nnx.Module]:
    """The class of the network `name` that a `config.json` describes.

    Raises:
      UserError: it is of a family that is not supported.
    """
    if name in ("text_encoder", TEACHER):
        family = config.get("model_type", "clip_text_model")
        if not isinstance(family, str) or family not in _TEXT_ENCODERS:
            raise UserError(f"{name}: model_type {family!r:.100} is not supported (only {', '.join(_TEXT_ENCODERS)})")
        return _TEXT_ENCODERS[family][0]
    if name == CLASSIFIER:
        return architecture_class(config.get("architecture"))
    written = config.get("_class_name", _CLASSES[name].__name__)
    if written != _CLASSES[name].__name__:
        raise UserError(f"{name}: _class_name {written!r:.100} is not supported (only {_CLASSES[name].__name__})")
    return _CLASSES[name]


def network_config(name: str, architecture: Mapping[str, Any]) -> bytes:
    """The `config.json` of a network that a run config describes."""
    if name == CLASSIFIER:
        return parsing.to_json(configs.ClassifierConfig.from_dict(architecture).to_dict())
    if name in UNPUBLISHED:
        return parsing.to_json(dict(architecture))
    if name != "text_encoder":
        return parsing.to_json(
            {"_class_name": _CLASSES[name].__name__, "_diffusers_version": _DIFFUSERS, **architecture}
        )
    family = architecture.get("model_type", "clip_text_model")
    network_class(name, {"model_type": family})
    encoder = _TEXT_ENCODERS[family][1]
    return parsing.to_json({"architectures": [encoder], "model_type": family, "dtype": "float32", **architecture})


def controlnet_config(files: Mapping[str, bytes]) -> bytes:
    """The `config.json` of a new ControlNet for the U-Net and autoencoder of these files, its condition in colour.

    Raises:
      UserError: the U-Net has what a ControlNet does not.
    """
    unet = parse_object("unet/config.json", files["unet/config.json"])
    halvings = network_config_of("vae", files["vae/config.json"]).vae_scale_factor.bit_length() - 1
    known = {field.name for field in dataclasses.fields(configs.ControlNetConfig)} - {"up_block_types"}
    # What diffusers' class has no parameter for; those of a U-Net that differ from its defaults would be lost.
    for key in ("encoder_hid_dim", "num_class_embeds", "time_embedding_dim"):
        if unet.get(key) is not None:
            raise UserError(f"unet/config.json: {key} = {unet[key]!r:.100}: a ControlNet does not have that")
    widths = [*(16, 32, 96, 256)[: halvings + 1], *[256] * (halvings - 3)]
    own = {key: value for key, value in unet.items() if key in known and key not in _UNET_ALONE}
    return network_config(CONTROLNET, own | {"conditioning_embedding_out_channels": widths})


def inpainting_inputs(latents: int) -> int:
    """Channels that a U-Net of inpainting sees of so many channels of latents: x, the mask, the masked image."""
    return 2 * latents + 1


def _pipeline_class(files: Mapping[str, bytes]) -> str:
    """The class of diffusers that draws with these networks."""
    unet, vae = (parse_object(name, files.get(name, b"{}")) for name in ("unet/config.json", "vae/config.json"))
    if f"{CONTROLNET}/config.json" in files:
        return "StableDiffusionControlNetPipeline"
    inpaints = "latent_channels" in vae and unet.get("in_channels") == inpainting_inputs(vae["latent_channels"])
    return "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"


def model_index(files: Mapping[str, bytes]) -> bytes:
    """The `model_index.json` that lets diffusers load a folder of these files as a pipeline."""
    text = parse_object("text_encoder/config.json", files.get("text_encoder/config.json", b"{}"))
    network_class("text_encoder", text)
    _, encoder, tokenizer = _TEXT_ENCODERS[text.get("model_type", "clip_text_model")]
    scheduler = parse_object(SCHEDULER_CONFIG, files.get(SCHEDULER_CONFIG, b"{}"))
    libraries = {
        "scheduler": ("diffusers", scheduler.get("_class_name", "DDIMScheduler")),
        "text_encoder": ("transformers", encoder),
        "tokenizer": ("transformers", tokenizer),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    folders = {name.split("/")[0] for name in files}
    if CONTROLNET in folders:
        libraries[CONTROLNET] = ("diffusers", "ControlNetModel")
    absent: tuple[None, None] = (None, None)
    return parsing.to_json(
        {
            "_class_name": _pipeline_class(files),
            "_diffusers_version": _DIFFUSERS,
            "feature_extractor": absent,
            "requires_safety_checker": False,
            "safety_checker": absent,
            **{part: library if part in folders else absent for part, library in libraries.items()},
        }
    )


@dataclasses.dataclass(frozen=True)
class _Index:
    """The parts of a pipeline in a `model_index.json`, each a library and a class, or two nulls."""

    scheduler: _Part = None
    text_encoder: _Part = None
    tokenizer: _Part = None
    unet: _Part = None
    vae: _Part = None
    safety_checker: _Part = None
    feature_extractor: _Part = None


def parse_index(name: str, data: bytes) -> dict[str, Any]:
    """A `model_index.json`.

    Raises:
      UserError: it is damaged, or names a library besides diffusers and transformers.
    """
    index = parse_object(name, data)
    parts: _Index = parsing.convert(index, _Index, name, remedy="copy the file again")
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        library = (getattr(parts, part) or (None,))[0]
        if library not in (None, *_LIBRARIES):
            raise UserError(f"{name}: {part} is of the library {library!r:.100}; it may be {' or '.join(_LIBRARIES)}")
    return index


def scheduler_class(files: Mapping[str, bytes]) -> str:
    """The class that diffusers makes a pipeline's scheduler of: its `model_index.json`'s, or else the file's own."""
    index = parse_index("model_index.json", files.get("model_index.json", b"{}"))
    named = (index.get("scheduler") or [None, None])[1]
    return named or parse_object(SCHEDULER_CONFIG, files[SCHEDULER_CONFIG]).get("_class_name", "DDIMScheduler")
