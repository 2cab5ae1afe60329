"""The towers of CLIP (arXiv 2103.00020) up to the space that images and texts have in common."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
from jaxcxr.models.clip import CLIPAttention, CLIPEncoder, CLIPTextModel
from jaxcxr.models.layers import layer_norm, linear
from jaxcxr.models.text_config import CLIPTextConfig


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """The keys of a `vision_config` that the network depends on, with the defaults of transformers (ViT-B/32)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def layers(self) -> CLIPTextConfig:
        """The configuration of the same layers in the tower of texts."""
        return CLIPTextConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.layer_norm_eps,
        )


class CLIPVisionAttention(CLIPAttention):
    """Multi-head self-attention in which every patch sees all others."""

    causal = False


class CLIPVisionEmbeddings(nnx.Module):
    """Patches and a class token, with their positions."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nnx.Param(jnp.zeros(width))
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=False,
            kernel_init=initial.torch_kernel(),
            rngs=rngs,
        )
        positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = nnx.Embed(positions, width, embedding_init=initial.normal(0.02), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, image_size, image_size, 3) -> (B, patches + 1, hidden_size)`, the class token first."""
        patches = self.patch_embedding(images)
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        token = jnp.broadcast_to(self.class_embedding[...], (len(images), 1, patches.shape[-1]))
        return jnp.concatenate([token, patches], axis=1) + self.position_embedding.embedding[...]


class CLIPVisionTransformer(nnx.Module):
    """Embeddings, encoder and the norm of the class token: the `vision_model` of a checkpoint."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.embeddings = CLIPVisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = layer_norm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)  # sic
        self.encoder = CLIPEncoder(config.layers, dtype=jnp.float32, rngs=rngs)
        for layer in self.encoder.layers:
            layer.self_attn = CLIPVisionAttention(config.layers, dtype=jnp.float32, rngs=rngs)
        self.post_layernorm = layer_norm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, image_size, image_size, 3) -> (B, hidden_size)`."""
        hidden_states = self.pre_layrnorm(self.embeddings(images))
        hidden_states = self.encoder(hidden_states, len(self.encoder.layers))
        return self.post_layernorm(hidden_states[:, 0])


class CLIPVisionModelWithProjection(nnx.Module):
    """The tower of images, with the parameter names of transformers' class.

    Args:
        config: which of the published networks.
        normalized: whether the vectors are divided by their length.
        rngs: draws initial parameters.
    """

    def __init__(self, config: CLIPVisionConfig, *, normalized: bool = False, rngs: nnx.Rngs):
        self.normalized = normalized
        self.vision_model = CLIPVisionTransformer(config, rngs=rngs)
        self.visual_projection = linear(
            config.hidden_size, config.projection_dim, bias=False, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, image_size, image_size, 3)` float32 to `(B, projection_dim)` float32."""
        features = self.visual_projection(self.vision_model(images))
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True) if self.normalized else features


class CLIPTextModelWithProjection(CLIPTextModel):
    """The tower of texts, with the parameter names of transformers' class."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width = config.projection_dim or config.hidden_size
        self.text_projection = linear(config.hidden_size, width, bias=False, dtype=jnp.float32, rngs=rngs)

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """`(B, L)` ids to `(B, projection_dim)` float32, of the state at the first end-of-text token."""
        return self.text_projection(self.pool(self(input_ids), input_ids))
