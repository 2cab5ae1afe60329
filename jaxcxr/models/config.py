"""Configurations of the networks, under the names diffusers and transformers write to `config.json`."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from msgspec import Meta

from jaxcxr import parsing
from jaxcxr.errors import UserError

# What a field may hold. The bounds lie far beyond every published network; within them a network is described quickly.
_T = TypeVar("_T")
_PerLevel = Annotated[tuple[_T, ...], Meta(min_length=1, max_length=8)]
_Width = Annotated[int, Meta(ge=1, le=2**15)]
_Rows = Annotated[int, Meta(ge=1, le=2**22)]
_Layers = Annotated[int, Meta(ge=1, le=64)]
_Kernel = Annotated[int, Meta(ge=1, le=15)]
_Pair = Annotated[tuple[_Width, ...], Meta(min_length=2, max_length=2)]  # tuple[int, int] crashes msgspec 0.22 here
_Id = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Epsilon = Annotated[float, Meta(ge=0, lt=1)]
_Factor = Annotated[float, Meta(gt=0, le=1e4)]
_MOST_BLOCKS = 256
_short = reprlib.repr  # for a message


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that a configuration is hashable and can be static under `jax.jit`."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class _Config:
    """The fields a network reads; subclasses say what it tolerates besides them.

    `only` maps a key that asks for an architecture variant to the values that ask for none of it;
    `ignored` lists keys that do not touch the architecture.
    """

    only: ClassVar[dict[str, tuple]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any] | _Config) -> Self:
        """Reads a `config.json`; absent keys take the library's default, keys with a leading `_` are ignored.

        Raises:
            UserError: a key is unknown, or its value is not allowed or asks for something that is not implemented.
        """
        if isinstance(config, cls):
            return config
        if isinstance(config, _Config):
            raise UserError(f"{type(config).__name__} was given where a {cls.__name__} is needed")
        names = {field.name for field in dataclasses.fields(cls)}
        kept = cls._defaults(config)
        for key, raw in config.items():
            value = _frozen(raw)
            if key in cls.only and value not in cls.only[key]:
                raise UserError(f"{cls.__name__}: {key} = {_short(raw)} is not supported (only {cls.only[key]})")
            if key in names:
                kept[key] = value
            elif not (key.startswith("_") or key in cls.only or key in cls.ignored):
                raise UserError(
                    f"{cls.__name__}: unknown key {_short(key)} = {_short(raw)}; remove it or check its spelling"
                )
        return parsing.convert(kept, cls, cls.__name__)

    @classmethod
    def _defaults(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on another key of the file."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for `config.json`."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @property
    def blocks(self) -> int:
        """How many residual and transformer blocks the network has."""
        raise NotImplementedError

    def _refuse(self, key: str, why: str) -> None:
        raise UserError(f"{key} = {_short(getattr(self, key))} {why}")

    def _require_few_blocks(self) -> None:
        if self.blocks > _MOST_BLOCKS:
            raise UserError(f"layers_per_block and others make {self.blocks} blocks; at most {_MOST_BLOCKS} are read")

    def _divides(self, key: str, widths: str) -> None:
        value = getattr(self, widths)
        if any(width % getattr(self, key) for width in (value if isinstance(value, tuple) else (value,))):
            self._refuse(key, f"must divide {widths}, {value}")


def _looks_at_text(block_type: str) -> bool:
    return block_type.startswith("CrossAttn")


@dataclasses.dataclass(frozen=True)
class UNet2DConditionConfig(_Config):
    """Configuration of `UNet2DConditionModel`, with the defaults of diffusers.

    Of `encoder_hid_dim_type` diffusers knows text_proj, one dense layer; text_mlp, with a hidden layer, is ours.
    """

    sample_size: _Width | _Pair | None = None
    in_channels: _Width = 4
    out_channels: _Width = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Meta(ge=0, le=1024)] = 0
    down_block_types: _PerLevel[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: _PerLevel[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | _PerLevel[bool] = False
    block_out_channels: _PerLevel[_Width] = (320, 640, 1280, 1280)
    layers_per_block: _Layers | _PerLevel[_Layers] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: _Factor = 1.0
    act_fn: str = "silu"
    norm_num_groups: _Width = 32
    norm_eps: _Epsilon = 1e-5
    cross_attention_dim: _Width | _PerLevel[_Width] = 1280
    transformer_layers_per_block: _Layers | _PerLevel[_Layers] = 1
    encoder_hid_dim: _Width | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: _Width | _PerLevel[_Width] = 8
    use_linear_projection: bool = False
    num_class_embeds: _Rows | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: _Width | None = None
    conv_in_kernel: _Kernel = 3
    conv_out_kernel: _Kernel = 3

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

    up_block_types: _PerLevel[str] = ()  # it has none; the U-Net's checks want as many as levels
    conditioning_channels: _Width = 3
    conditioning_embedding_out_channels: _PerLevel[_Width] = (16, 32, 96, 256)

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
class AutoencoderKLConfig(_Config):
    """Configuration of `AutoencoderKL`, with the defaults of diffusers."""

    in_channels: _Width = 3
    out_channels: _Width = 3
    down_block_types: _PerLevel[str] = ("DownEncoderBlock2D",)
    up_block_types: _PerLevel[str] = ("UpDecoderBlock2D",)
    block_out_channels: _PerLevel[_Width] = (64,)
    layers_per_block: _Layers = 1
    act_fn: str = "silu"
    latent_channels: _Width = 4
    norm_num_groups: _Width = 32
    sample_size: _Width | _Pair = 32
    scaling_factor: _Factor = 0.18215
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


def layers_kept(num_hidden_layers: int, clip_skip: int) -> int:
    """How many layers of a text encoder run without its last `clip_skip`; UserError if there are fewer."""
    if not 0 <= clip_skip <= num_hidden_layers:
        raise UserError(f"clip_skip = {clip_skip} must be between 0 and num_hidden_layers = {num_hidden_layers}")
    return num_hidden_layers - clip_skip


# What `PretrainedConfig` of transformers 4 and 5 writes for every model.
_PRETRAINED = frozenset(
    {
        "architectures",
        "chunk_size_feed_forward",
        "dropout",
        "dtype",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
    }
)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(_Config):
    """Configuration of `CLIPTextModel`, with the defaults of transformers."""

    vocab_size: _Rows = 49408
    hidden_size: _Width = 512
    intermediate_size: _Width = 2048
    projection_dim: _Width | None = 512
    num_hidden_layers: _Layers = 12
    num_attention_heads: _Width = 8
    max_position_embeddings: _Rows = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: _Epsilon = 1e-5
    initializer_range: _Factor = 0.02
    initializer_factor: _Factor = 1.0
    pad_token_id: _Id | None = 1
    bos_token_id: _Id | None = 49406
    eos_token_id: _Id | None = 49407

    only: ClassVar[dict[str, tuple]] = {
        "hidden_act": ("quick_gelu", "gelu"),
        "attention_dropout": (0.0,),
        "model_type": ("clip_text_model", "clip"),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({},),
    }
    ignored: ClassVar[frozenset[str]] = _PRETRAINED

    def __post_init__(self) -> None:
        self._divides("num_attention_heads", "hidden_size")

    @property
    def blocks(self) -> int:
        """How many transformer blocks the network has."""
        return self.num_hidden_layers


@dataclasses.dataclass(frozen=True)
class BertConfig(_Config):
    """Configuration of `BertModel`, with the defaults of transformers' BERT.

    `use_attention_mask` is diffusers' key: whether padding is hidden from attention. `add_pooling_layer`, false
    where a checkpoint came without its pooler, is the one key that is ours.
    """

    model_type: str = "bert"
    vocab_size: _Rows = 30522
    hidden_size: _Width = 768
    num_hidden_layers: _Layers = 12
    num_attention_heads: _Width = 12
    intermediate_size: _Width = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: _Rows = 512
    type_vocab_size: _Rows = 2
    initializer_range: _Factor = 0.02
    layer_norm_eps: _Epsilon = 1e-12
    pad_token_id: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    use_attention_mask: bool = False
    add_pooling_layer: bool = True

    only: ClassVar[dict[str, tuple]] = {
        "model_type": ("bert", "roberta"),
        "hidden_act": ("gelu", "gelu_new", "relu"),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({},),
    }
    ignored: ClassVar[frozenset[str]] = _PRETRAINED | {
        # Dropout is of BERT's own training; here the encoder is a condition.
        "attention_probs_dropout_prob",
        "bos_token_id",
        "classifier_dropout",
        "directionality",
        "eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    }

    @classmethod
    def _defaults(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        roberta = {"vocab_size": 50265, "pad_token_id": 1}
        return roberta if config.get("model_type") == "roberta" else {}

    def __post_init__(self) -> None:
        self._divides("num_attention_heads", "hidden_size")
        if self.longest < 1:
            self._refuse("max_position_embeddings", "leaves no position for a token; raise it")
        if self.pad_token_id >= self.vocab_size:
            self._refuse("pad_token_id", f"must be less than vocab_size, {self.vocab_size}")

    @property
    def blocks(self) -> int:
        """How many transformer blocks the network has."""
        return self.num_hidden_layers

    @property
    def longest(self) -> int:
        """The most tokens a text may have; RoBERTa spends the table's first rows on padding."""
        return self.max_position_embeddings - (self.pad_token_id + 1 if self.model_type == "roberta" else 0)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig(_Config):
    """A discriminator of patches: the channels of an image, and those after its first convolution."""

    in_channels: _Width = 1
    width: _Width = 64

    @property
    def blocks(self) -> int:
        """None is counted: it has always as many layers."""
        return 0


@dataclasses.dataclass(frozen=True)
class LpipsConfig(_Config):
    """The network whose features LPIPS compares, alex or vgg, and whether its channels have weights."""

    net: str = "vgg"
    calibrated: bool = True

    @property
    def blocks(self) -> int:
        """None is counted: a net has always as many layers."""
        return 0


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(_Config):
    """A classifier of images: an architecture, its classes in order, and what it takes an image as.

    Images are resized to `image_size` pixels a side. With three `in_channels` they are normalized as ImageNet's are.
    """

    architecture: str = "densenet121"
    classes: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=4096)] = ()
    image_size: _Width = 224
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
