"""DINOv2 (arXiv 2304.07193), a vision transformer trained without labels."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxcxr.models.attention import attention
from jaxcxr.models.compute import PORTABLE
from jaxcxr.models.layers import conv, gelu, layer_norm, linear


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """The keys of a `config.json` that the network depends on, with the defaults of transformers (ViT-B/14)."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False


class Dinov2PatchEmbeddings(nnx.Module):
    """Patches as tokens."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.projection = conv(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            stride=config.patch_size,
            padding=(0, 0),
            dtype=jnp.float32,
            rngs=rngs,
        )


class Dinov2Embeddings(nnx.Module):
    """Patches and a class token, with their positions."""

    def __init__(self, config: Dinov2Config, *, offset: float, rngs: nnx.Rngs):
        self.offset, width = offset, config.hidden_size
        self.side = config.image_size // config.patch_size
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, self.side**2 + 1, width)))
        self.patch_embeddings = Dinov2PatchEmbeddings(config, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3) -> (B, patches + 1, hidden_size)`, the class token first."""
        patches = self.patch_embeddings.projection(images)
        batch, height, width, channels = patches.shape
        token = jnp.broadcast_to(self.cls_token[...], (batch, 1, channels))
        tokens = jnp.concatenate([token, patches.reshape(batch, -1, channels)], axis=1)
        return tokens + self._positions(height, width)

    def _positions(self, height: int, width: int) -> jax.Array:
        """The learnt positions, resampled for images of other sizes: `(1, height · width + 1, hidden_size)`."""
        learnt = self.position_embeddings[...]
        if (height, width) == (self.side, self.side):
            return learnt
        grid = learnt[0, 1:].reshape(self.side, self.side, -1)
        rows, columns = (bicubic(self.side, length, self.offset) for length in (height, width))
        grid = jnp.einsum("yi,xj,ijc->yxc", rows, columns, grid, precision="highest")
        return jnp.concatenate([learnt[:, :1], grid.reshape(1, height * width, -1)], axis=1)


def bicubic(length: int, new_length: int, offset: float) -> np.ndarray:
    """PyTorch's bicubic interpolation without antialiasing, as a matrix `(new_length, length)`, float32.

    Args:
        length: of the axis.
        new_length: that it gets.
        offset: is added to `new_length` where the spacing of the samples is computed. Meta's code has 0.1, against
            rounding; transformers has none.
    """
    spacing = np.float32(length / (new_length + offset))
    positions = spacing * (np.arange(new_length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    taps = np.floor(positions)[:, None] + np.arange(-1, 3)
    x = np.abs(positions[:, None] - taps)
    a = -0.75  # the kernel of R. G. Keys, doi:10.1109/TASSP.1981.1163711
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    matrix = np.zeros((new_length, length), np.float32)
    columns = taps.astype(int).clip(0, length - 1)  # what lies beyond an edge is as the edge
    np.add.at(matrix, (np.arange(new_length)[:, None], columns), np.where(x <= 1, near, far).astype(np.float32))
    return matrix


class Dinov2SelfAttention(nnx.Module):
    """The heads of attention."""

    compute = PORTABLE

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.query, self.key, self.value = (linear(width, width, dtype=jnp.float32, rngs=rngs) for _ in range(3))

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        batch, length, width = hidden_states.shape
        heads = (batch, length, self.heads, width // self.heads)
        query, key, value = (layer(hidden_states).reshape(heads) for layer in (self.query, self.key, self.value))
        return attention(query, key, value, compute=self.compute).reshape(batch, length, width)


class Dinov2SelfOutput(nnx.Module):
    """What mixes the heads."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.dense = linear(config.hidden_size, config.hidden_size, dtype=jnp.float32, rngs=rngs)


class Dinov2Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.attention = Dinov2SelfAttention(config, rngs=rngs)
        self.output = Dinov2SelfOutput(config, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        return self.output.dense(self.attention(hidden_states))


class Dinov2LayerScale(nnx.Module):
    """A learnt factor for each feature (arXiv 2103.17239)."""

    def __init__(self, config: Dinov2Config):
        self.lambda1 = nnx.Param(jnp.ones(config.hidden_size))

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        return hidden_states * self.lambda1[...]


class Dinov2MLP(nnx.Module):
    """The two-layer perceptron of a layer."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, math.floor(config.hidden_size * config.mlp_ratio)
        self.fc1 = linear(width, inner, dtype=jnp.float32, rngs=rngs)
        self.fc2 = linear(inner, width, dtype=jnp.float32, rngs=rngs)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        return self.fc2(gelu(self.fc1(hidden_states)))


class Dinov2Layer(nnx.Module):
    """Attention and perceptron, each normalized before, scaled and added after."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.norm1 = layer_norm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)
        self.attention = Dinov2Attention(config, rngs=rngs)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.norm2 = layer_norm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)
        self.mlp = Dinov2MLP(config, rngs=rngs)
        self.layer_scale2 = Dinov2LayerScale(config)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, L, hidden_size) -> (B, L, hidden_size)`."""
        hidden_states = hidden_states + self.layer_scale1(self.attention(self.norm1(hidden_states)))
        return hidden_states + self.layer_scale2(self.mlp(self.norm2(hidden_states)))


class Dinov2Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List(Dinov2Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers))


class Dinov2Model(nnx.Module):
    """The network, with the parameter names that transformers' files of `Dinov2Model` have.

    Args:
        config: which of the published networks.
        offset: of the interpolation of positions, see `bicubic`.
        rngs: draws initial parameters.
    """

    def __init__(self, config: Dinov2Config, *, offset: float = 0.0, rngs: nnx.Rngs):
        self.embeddings = Dinov2Embeddings(config, offset=offset, rngs=rngs)
        self.encoder = Dinov2Encoder(config, rngs=rngs)
        self.layernorm = layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(B, H, W, 3)` float32, sizes in whole patches, to the class token's `(B, hidden_size)` float32."""
        hidden_states = self.embeddings(images)
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states[:, 0])
