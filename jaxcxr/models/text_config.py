"""Configurations of text encoders, under the names transformers writes to `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from jaxcxr.errors import UserError
from jaxcxr.models.fields import Epsilon, Factor, Id, Layers, NetworkConfig, Rows, Width


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
class CLIPTextConfig(NetworkConfig):
    """Configuration of `CLIPTextModel`, with the defaults of transformers."""

    vocab_size: Rows = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    projection_dim: Width | None = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Rows = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    initializer_range: Factor = 0.02
    initializer_factor: Factor = 1.0
    pad_token_id: Id | None = 1
    bos_token_id: Id | None = 49406
    eos_token_id: Id | None = 49407

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
class BertConfig(NetworkConfig):
    """Configuration of `BertModel`, with the defaults of transformers' BERT.

    `use_attention_mask` is diffusers' key: whether padding is hidden from attention. `add_pooling_layer`, false
    where a checkpoint came without its pooler, is the one key that is ours.
    """

    model_type: str = "bert"
    vocab_size: Rows = 30522
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: Rows = 512
    type_vocab_size: Rows = 2
    initializer_range: Factor = 0.02
    layer_norm_eps: Epsilon = 1e-12
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
