"""The networks, as pure Flax NNX modules: no input or output, no sharding, no training."""

from jaxcxr.models.clip import CLIPTextModel
from jaxcxr.models.compute import Compute, specialize
from jaxcxr.models.config import AutoencoderKLConfig, UNet2DConditionConfig
from jaxcxr.models.controlnet import ControlNetModel
from jaxcxr.models.named import abstract, initial_parameters, named_parameters, with_parameters
from jaxcxr.models.text_config import CLIPTextConfig
from jaxcxr.models.unet import UNet2DConditionModel
from jaxcxr.models.vae import AutoencoderKL, split_moments

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "Compute",
    "ControlNetModel",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "abstract",
    "initial_parameters",
    "named_parameters",
    "specialize",
    "split_moments",
    "with_parameters",
]
