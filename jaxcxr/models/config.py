"""Configurations of the networks of images, under the names diffusers writes to `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

from msgspec import Meta

from jaxcxr.models.fields import Epsilon, Factor, Kernel, Layers, NetworkConfig, Pair, PerLevel, Rows, Width


def _looks_at_text(block_type: str) -> bool:
    return block_type.startswith("CrossAttn")


@dataclasses.dataclass(frozen=True)
class UNet2DConditionConfig(NetworkConfig):
    """Configuration of `UNet2DConditionModel`, with the defaults of diffusers.

    Of `encoder_hid_dim_type` diffusers knows text_proj, one dense layer; text_mlp, with a hidden layer, is ours.
    """

    sample_size: Width | Pair | None = None
    in_channels: Width = 4
    out_channels: Width = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Meta(ge=0, le=1024)] = 0
    down_block_types: PerLevel[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: PerLevel[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | PerLevel[bool] = False
    block_out_channels: PerLevel[Width] = (320, 640, 1280, 1280)
    layers_per_block: Layers | PerLevel[Layers] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: Factor = 1.0
    act_fn: str = "silu"
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width | PerLevel[Width] = 1280
    transformer_layers_per_block: Layers | PerLevel[Layers] = 1
    encoder_hid_dim: Width | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: Width | PerLevel[Width] = 8
    use_linear_projection: bool = False
    num_class_embeds: Rows | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: Width | None = None
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3

    only: ClassVar[dict[str, tuple]] = {
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "downsample_padding": (0, 1),
        "act_fn": ("silu", "swish"),
        "encoder_hid_dim_type": (None, "text_proj", "text_mlp"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "dropout": (0.0,),
        "dual_cross_attention": (False,),
        "num_attention_heads": (None,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "projection_class_embeddings_input_dim": (None,),
        "reverse_transformer_layers_per_block": (None,),
        "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"addition_embed_type_num_heads"})

    def __post_init__(self) -> None:
        for key, suffix in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
            known = {suffix, f"CrossAttn{suffix}", f"Attn{suffix}"}
            if not set(getattr(self, key)) <= known:
                self._refuse(key, f"is not supported (only {sorted(known)})")
        levels = len(self.block_out_channels)
        for key in (
            "down_block_types",
            "up_block_types",
            "only_cross_attention",
            "layers_per_block",
            "cross_attention_dim",
            "transformer_layers_per_block",
            "attention_head_dim",
        ):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != levels:
                self._refuse(key, f"must have as many items as block_out_channels, {levels}")
        self._divides("norm_num_groups", "block_out_channels")
        if self.freq_shift >= self.block_out_channels[0] // 2:
            self._refuse("freq_shift", f"must be less than half of the first of {self.block_out_channels}")
        if self.encoder_hid_dim_type is not None and self.encoder_hid_dim is None:
            self._refuse("encoder_hid_dim_type", "needs encoder_hid_dim")
        heads = self.per_block("attention_head_dim")
        if any(count > width for count, width in zip(heads, self.block_out_channels, strict=True)):
            self._refuse("attention_head_dim", f"must be at most the width of its block in {self.block_out_channels}")
        self._require_few_blocks()

    @property
    def blocks(self) -> int:
        """How many residual and transformer blocks the network has."""
        counts, depths = self.per_block("layers_per_block"), self.per_block("transformer_layers_per_block")
        layers = zip(self.up_block_types, counts[::-1], depths[::-1], strict=True)
        return self._half + sum((count + 1) * (1 + depth * _looks_at_text(kind)) for kind, count, depth in layers)

    @property
    def _half(self) -> int:
        """Of these, those down to the middle, and it."""
        counts, depths = self.per_block("layers_per_block"), self.per_block("transformer_layers_per_block")
        middle = 1 + (1 + depths[-1]) * (self.mid_block_type == "UNetMidBlock2DCrossAttn")
        layers = zip(self.down_block_types, counts, depths, strict=True)
        return middle + sum(count * (1 + depth * _looks_at_text(kind)) for kind, count, depth in layers)

    def per_block(self, key: str) -> tuple:
        """The values of `key` for every down block, from the outermost inwards."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding, four times the outermost block unless `time_embedding_dim` says so."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNet2DConditionConfig):
    """Configuration of `ControlNetModel`: that of the U-Net it goes with, up to the middle, and of the condition."""

    up_block_types: PerLevel[str] = ()  # it has none; the U-Net's checks want as many as levels
    conditioning_channels: Width = 3
    conditioning_embedding_out_channels: PerLevel[Width] = (16, 32, 96, 256)

    only: ClassVar[dict[str, tuple]] = UNet2DConditionConfig.only | {
        "controlnet_conditioning_channel_order": ("rgb",),
        "global_pool_conditions": (False,),
        "encoder_hid_dim": (None,),
        "num_class_embeds": (None,),
        "up_block_types": ((),),
    }

    def __post_init__(self) -> None:
        object.__setattr__(self, "up_block_types", ("UpBlock2D",) * len(self.block_out_channels))
        super().__post_init__()

    @property
    def blocks(self) -> int:
        """How many residual and transformer blocks the network has."""
        return self._half


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig(NetworkConfig):
    """Configuration of `AutoencoderKL`, with the defaults of diffusers."""

    in_channels: Width = 3
    out_channels: Width = 3
    down_block_types: PerLevel[str] = ("DownEncoderBlock2D",)
    up_block_types: PerLevel[str] = ("UpDecoderBlock2D",)
    block_out_channels: PerLevel[Width] = (64,)
    layers_per_block: Layers = 1
    act_fn: str = "silu"
    latent_channels: Width = 4
    norm_num_groups: Width = 32
    sample_size: Width | Pair = 32
    scaling_factor: Factor = 0.18215
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    only: ClassVar[dict[str, tuple]] = {
        "act_fn": ("silu", "swish"),
        # Stable Diffusion's pipelines apply none of these: latents that are shifted are of another family's.
        "shift_factor": (None, 0),
        "latents_mean": (None,),
        "latents_std": (None,),
    }

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if getattr(self, key) != (known,) * levels:
                self._refuse(key, f"is not supported (only {known}, one for each of block_out_channels)")
        self._divides("norm_num_groups", "block_out_channels")
        self._require_few_blocks()

    @property
    def blocks(self) -> int:
        """How many residual blocks the network has."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1) + 4

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image's side for each of its latents' side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig(NetworkConfig):
    """A discriminator of patches: the channels of an image, and those after its first convolution."""

    in_channels: Width = 1
    width: Width = 64

    @property
    def blocks(self) -> int:
        """None is counted: it has always as many layers."""
        return 0


@dataclasses.dataclass(frozen=True)
class LpipsConfig(NetworkConfig):
    """The network whose features LPIPS compares, alex or vgg, and whether its channels have weights."""

    net: str = "vgg"
    calibrated: bool = True

    @property
    def blocks(self) -> int:
        """None is counted: a net has always as many layers."""
        return 0


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(NetworkConfig):
    """A classifier of images: an architecture, its classes in order, and what it takes an image as.

    Images are resized to `image_size` pixels a side. With three `in_channels` they are normalized as ImageNet's are.
    """

    architecture: str = "densenet121"
    classes: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=4096)] = ()
    image_size: Width = 224
    in_channels: Annotated[int, Meta(ge=1, le=3)] = 1

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            self._refuse("classes", "has to name each class once")
        if self.in_channels == 2:
            self._refuse("in_channels", "may be 1 or 3")

    @property
    def blocks(self) -> int:
        """None is counted: the names of its blocks are other than those of the other networks."""
        return 0
