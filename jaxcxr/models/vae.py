"""The autoencoder whose latents are diffused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models import initial
from jaxcxr.models.attention import SelfAttention2D
from jaxcxr.models.config import AutoencoderKLConfig
from jaxcxr.models.layers import Downsample2D, Identity, ResnetBlock2D, Upsample2D, conv, group_norm
from jaxcxr.models.unet_blocks import MidBlock2D

NORM_EPSILON = 1e-6


def _resnet(
    config: AutoencoderKLConfig, in_channels: int, out_channels: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        epsilon=NORM_EPSILON,
        dtype=dtype,
        rngs=rngs,
    )


def _mid_block(config: AutoencoderKLConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> MidBlock2D:
    width = config.block_out_channels[-1]
    attention = (
        SelfAttention2D(
            width,
            head_dim=width,
            groups=config.norm_num_groups,
            epsilon=NORM_EPSILON,
            dtype=dtype,
            rngs=rngs,
        )
        if config.mid_block_add_attention
        else Identity()
    )
    return MidBlock2D([_resnet(config, width, width, dtype, rngs) for _ in range(2)], [attention])


class DownEncoderBlock2D(nnx.Module):
    """Residual blocks, then halving except in the last block."""

    def __init__(self, config: AutoencoderKLConfig, level: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.block_out_channels[level]
        widths = [config.block_out_channels[max(level - 1, 0)]] + [width] * (config.layers_per_block - 1)
        self.resnets = nnx.List(_resnet(config, before, width, dtype, rngs) for before in widths)
        self.downsamplers = (
            nnx.List([Downsample2D(width, padding=0, dtype=dtype, rngs=rngs)])
            if level < len(config.block_out_channels) - 1
            else None
        )

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in) -> (B, ⌊H/2⌋, ⌊W/2⌋, out)`."""
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states)
        return hidden_states if self.downsamplers is None else self.downsamplers[0](hidden_states)


class UpDecoderBlock2D(nnx.Module):
    """Residual blocks, one more than in the encoder, then doubling except in the last block."""

    def __init__(self, config: AutoencoderKLConfig, level: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = config.block_out_channels
        width = channels[level]
        widths = [channels[min(level + 1, len(channels) - 1)]] + [width] * config.layers_per_block
        self.resnets = nnx.List(_resnet(config, before, width, dtype, rngs) for before in widths)
        self.upsamplers = nnx.List([Upsample2D(width, dtype=dtype, rngs=rngs)]) if level > 0 else None

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """`(B, H, W, in) -> (B, 2H, 2W, out)`."""
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states)
        return hidden_states if self.upsamplers is None else self.upsamplers[0](hidden_states)


class Encoder(nnx.Module):
    """Images `(B, H, W, in_channels)` to moments `(B, h, w, 2 * latent_channels)`."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = conv(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            DownEncoderBlock2D(config, level, dtype=dtype, rngs=rngs) for level in range(len(channels))
        )
        self.mid_block = _mid_block(config, dtype, rngs)
        self.conv_norm_out = group_norm(
            channels[-1], config.norm_num_groups, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs
        )
        last = initial.zeros if config.use_quant_conv else initial.narrow_posterior
        self.conv_out = conv(channels[-1], 2 * config.latent_channels, bias_init=last, dtype=dtype, rngs=rngs)

    def __call__(self, sample: jax.Array) -> jax.Array:
        """Returns the moments before `quant_conv`."""
        hidden_states = self.conv_in(sample)
        for down_block in self.down_blocks:
            hidden_states = down_block(hidden_states)
        hidden_states = self.mid_block(hidden_states)
        return self.conv_out(self.conv_norm_out(hidden_states, nnx.silu))


class Decoder(nnx.Module):
    """Latents `(B, h, w, latent_channels)` to images `(B, H, W, out_channels)`."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = conv(config.latent_channels, channels[-1], dtype=dtype, rngs=rngs)
        self.mid_block = _mid_block(config, dtype, rngs)
        self.up_blocks = nnx.List(
            UpDecoderBlock2D(config, level, dtype=dtype, rngs=rngs) for level in reversed(range(len(channels)))
        )
        self.conv_norm_out = group_norm(
            channels[0], config.norm_num_groups, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(channels[0], config.out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the images."""
        hidden_states = self.mid_block(self.conv_in(latents))
        for up_block in self.up_blocks:
            hidden_states = up_block(hidden_states)
        return self.conv_out(self.conv_norm_out(hidden_states, nnx.silu))


class AutoencoderKL(nnx.Module):
    """A variational autoencoder of images (arXiv 2112.10752), parameter for parameter diffusers'.

    Latents are as the decoder sees them: scaling by `config.scaling_factor` is the caller's.

    Args:
        config: a `config.json` of diffusers, or the dataclass it becomes.
        dtype: of the computation; parameters are float32.
        rngs: its `params` stream draws the initial parameters.

    Raises:
        UserError: the configuration asks for something that is not implemented.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | AutoencoderKLConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config = AutoencoderKLConfig.from_dict(config)
        self.dtype = dtype
        latent = config.latent_channels
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.quant_conv = (
            conv(2 * latent, 2 * latent, 1, bias_init=initial.narrow_posterior, dtype=dtype, rngs=rngs)
            if config.use_quant_conv
            else None
        )
        self.post_quant_conv = conv(latent, latent, 1, dtype=dtype, rngs=rngs) if config.use_post_quant_conv else None

    def encode(self, sample: jax.Array) -> jax.Array:
        """Images `(B, H, W, in_channels)` to the posterior's moments `(B, h, w, 2 * latent_channels)`.

        Every block but the last halves the size, rounding down. See `split_moments`.
        """
        moments = self.encoder(sample.astype(self.dtype))
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `(B, h, w, latent_channels)` to images `(B, H, W, out_channels)`."""
        latents = latents.astype(self.dtype)
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


def normalize(image: jax.Array | np.ndarray, channels: int) -> jax.Array:
    """uint8 (B, H, W, C) -> float32 (B, H, W, channels) in [−1, 1], a gray repeated.

    Raises:
      UserError: the image is in colour, and `channels` is 1.
    """
    if image.shape[-1] not in (1, channels):
        raise UserError(
            f"images: are of {image.shape[-1]} channels, this network takes {channels}; prepare them in gray"
        )
    return jnp.repeat(jnp.asarray(image, jnp.float32) / 127.5 - 1, channels // image.shape[-1], axis=-1)


def sample_posterior(mean: jax.Array, logvar: jax.Array, keys: jax.Array) -> jax.Array:
    """A draw of latents, float32 (B, h, w, C), an example's by its own key; `keys` are (B,)."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return mean.astype(jnp.float32) + jnp.exp(0.5 * logvar.astype(jnp.float32)) * noise


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The posterior's mean and log-variance, each `(..., latent_channels)` and float32.

    The log-variance is held within [-30, 20], as in diffusers, so that its exponential is finite.
    """
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def reconstruction(vae: AutoencoderKL, images: jax.Array | np.ndarray) -> jax.Array:
    """What the autoencoder makes of the mean of images' posterior, float32 (B, H, W, C), images in [−1, 1].

    Args:
        vae: the autoencoder.
        images: uint8 (B, H, W, 1).
    """
    mean, _ = split_moments(vae.encode(normalize(images, vae.config.in_channels)))
    return vae.decode(mean).astype(jnp.float32)
