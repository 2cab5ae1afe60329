"""BioViL-T (arXiv 2301.04558): an image tower and CXR-BERT (arXiv 2204.09817), which share a space of 128 numbers.

The image tower is for one image: in the place of what has changed since an earlier one it has a learnt vector.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.models import initial
from jaxcxr.models.bert import BertModel
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.features.resnet import Bottleneck, ResNet
from jaxcxr.models.layers import Identity, conv, gelu, layer_norm, linear
from jaxcxr.models.text_config import BertConfig

WIDTH = 128
"""Of the space that images and texts share."""
_TRUNK, _HALF = 2048, 256  # channels of the trunk, and of what is seen now and of what has changed


class Trunk(ResNet):
    """ResNet-50 up to its last map."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(Bottleneck, (3, 4, 6, 3), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3)` to `(B, ⌈H/32⌉, ⌈W/32⌉, 2048)`."""
        return self.last_map(images)


class Unchanged(nnx.Module):
    """The learnt vector of an image without an earlier one."""

    def __init__(self) -> None:
        self.bias = nnx.Param(jnp.zeros(_HALF))


class Encoder(nnx.Module):
    """Patches of an image, beside what stands for their change."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.encoder = Trunk(rngs=rngs)
        self.backbone_to_vit = _pointwise(_TRUNK, _HALF, rngs)
        self.missing_previous_emb = Unchanged()

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3)` to `(B, ⌈H/32⌉, ⌈W/32⌉, 512)`."""
        patches = self.backbone_to_vit(self.encoder(images))
        return jnp.concatenate([patches, jnp.broadcast_to(self.missing_previous_emb.bias[...], patches.shape)], axis=-1)


class Projector(nnx.Module):
    """Two layers that take each patch to the shared space."""

    def __init__(self, *, rngs: nnx.Rngs):
        last = conv(WIDTH, WIDTH, 1, dtype=jnp.float32, rngs=rngs)
        self.model = nnx.List(
            [_pointwise(2 * _HALF, WIDTH, rngs), BatchNorm(WIDTH, rngs=rngs), Identity(), last]
        )  # the third is the activation

    def __call__(self, patches: jax.Array) -> jax.Array:
        """`(B, h, w, 512)` to `(B, h, w, 128)`."""
        first, norm, _, last = self.model
        return last(nnx.relu(norm(first(patches))))


class BioViLTImageModel(nnx.Module):
    """The image tower, with the parameter names of hi-ml-multimodal's `ImageModel`."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.encoder = Encoder(rngs=rngs)
        self.projector = Projector(rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3)` in 0..1 to the mean of the projected patches, of length one, `(B, 128)` float32."""
        return _of_length_one(self.projector(self.encoder(images)).mean(axis=(1, 2)))


class ProjectionHead(nnx.Module):
    """Two dense layers that take a text's first state to the shared space."""

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.dense_to_hidden = linear(hidden_size, WIDTH, dtype=jnp.float32, rngs=rngs)
        self.LayerNorm = layer_norm(WIDTH, epsilon=1e-12, dtype=jnp.float32, rngs=rngs)
        self.dense_to_output = linear(WIDTH, WIDTH, dtype=jnp.float32, rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        """`(B, hidden_size)` to `(B, 128)`."""
        return self.dense_to_output(self.LayerNorm(gelu(self.dense_to_hidden(states))))


class CXRBertModel(nnx.Module):
    """CXR-BERT with its projection, with the parameter names of hi-ml-multimodal's `CXRBertModel`."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        own = dataclasses.replace(config, use_attention_mask=True, add_pooling_layer=False)
        self.bert = BertModel(own, rngs=rngs)
        self.cls_projection_head = ProjectionHead(config.hidden_size, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """Ids `(B, L)` to the projected first state, of length one, `(B, 128)` float32."""
        return _of_length_one(self.cls_projection_head(self.bert(input_ids)[:, 0]))


def _pointwise(in_channels: int, out_channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution of size 1 without bias."""
    return nnx.Conv(in_channels, out_channels, (1, 1), use_bias=False, kernel_init=initial.torch_kernel(), rngs=rngs)


def _of_length_one(features: jax.Array) -> jax.Array:
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
