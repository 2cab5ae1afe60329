"""The denoising U-Net of latent diffusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.errors import UserError
from jaxcxr.models.config import UNet2DConditionConfig
from jaxcxr.models.layers import Mlp, conv, group_norm, linear, timestep_embedding
from jaxcxr.models.unet_blocks import BlockSpec, DownBlock2D, MidBlock2D, UpBlock2D

_TEXT_PROJECTIONS: dict[str, Any] = {"text_proj": linear, "text_mlp": Mlp}
"""From a text encoder's states to the context of cross-attention, by `encoder_hid_dim_type`."""


class UNet2DConditionModel(nnx.Module):
    """A U-Net over latents that looks at text (arXiv 2112.10752), parameter for parameter diffusers'.

    Args:
        config: a `config.json` of diffusers, or the dataclass it becomes; in it, as in diffusers,
            `attention_head_dim` is the number of heads of the transformer blocks.
        dtype: of the computation; parameters are float32.
        rngs: its `params` stream draws the initial parameters.

    Raises:
        UserError: the configuration asks for something that is not implemented.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | UNet2DConditionConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config = UNet2DConditionConfig.from_dict(config)
        self.dtype = dtype
        channels = config.block_out_channels
        self.conv_in = conv(config.in_channels, channels[0], config.conv_in_kernel, dtype=dtype, rngs=rngs)
        self.time_embedding = Mlp(channels[0], config.time_embed_dim, dtype=dtype, rngs=rngs)
        self.class_embedding = (
            nnx.Embed(config.num_class_embeds, config.time_embed_dim, dtype=dtype, rngs=rngs)
            if config.num_class_embeds is not None
            else None
        )
        self.encoder_hid_proj = (
            _TEXT_PROJECTIONS[config.encoder_hid_dim_type or "text_proj"](
                config.encoder_hid_dim, config.per_block("cross_attention_dim")[0], dtype=dtype, rngs=rngs
            )
            if config.encoder_hid_dim is not None
            else None
        )
        self.down_blocks, skip_channels = down_blocks(config, dtype, rngs)
        self.mid_block = mid_block(config, dtype, rngs)
        self.up_blocks = _up_blocks(config, skip_channels, dtype, rngs)
        self.conv_norm_out = group_norm(
            channels[0], config.norm_num_groups, epsilon=config.norm_eps, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(channels[0], config.out_channels, config.conv_out_kernel, dtype=dtype, rngs=rngs)

    def _embed_time(self, timesteps: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        config = self.config
        if (class_labels is None) != (self.class_embedding is None):
            raise UserError(
                f"class_labels must be given exactly when num_class_embeds is set; it is {config.num_class_embeds}"
            )
        temb = self.time_embedding(time_waves(config, timesteps).astype(self.dtype))
        if self.class_embedding is None or class_labels is None:
            return temb
        return temb + self.class_embedding(class_labels)

    def project_text(self, encoder_hidden_states: jax.Array) -> jax.Array:
        """What cross-attention sees of text states: `(B, L, D) -> (B, L, cross_attention_dim)` in the compute dtype."""
        states = encoder_hidden_states.astype(self.dtype)
        return states if self.encoder_hid_proj is None else self.encoder_hid_proj(states)

    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        class_labels: jax.Array | None = None,
        *,
        residuals: Sequence[jax.Array] = (),
    ) -> jax.Array:
        """Predicts the target (noise, velocity, …) from noisy latents.

        Args:
            sample: `(B, H, W, in_channels)`; H and W may be odd.
            timesteps: `(B,)` or scalar, integer or float.
            encoder_hidden_states: text states `(B, L, cross_attention_dim)`, or `(B, L, encoder_hid_dim)`.
            class_labels: `(B,)` integers, where the configuration has `num_class_embeds`.
            residuals: what a ControlNet adds, as it returns it: to each skip, and to the middle's output.

        Returns:
            `(B, H, W, out_channels)` in the compute dtype.

        Raises:
            UserError: `class_labels` are missing or unasked for.
        """
        temb = self._embed_time(jnp.broadcast_to(timesteps, sample.shape[:1]), class_labels)
        context = self.project_text(encoder_hidden_states)
        sample = sample.astype(self.dtype)
        hidden_states = self.conv_in(2 * sample - 1 if self.config.center_input_sample else sample)
        skips = [hidden_states]
        for down_block in self.down_blocks:
            hidden_states, new_skips = down_block(hidden_states, temb, context)
            skips += new_skips
        hidden_states = self.mid_block(hidden_states, temb, context)
        if residuals:
            *skips, hidden_states = (x + y for x, y in zip([*skips, hidden_states], residuals, strict=True))
        for up_block in self.up_blocks:
            hidden_states = up_block(hidden_states, skips, temb, context)
        return self.conv_out(self.conv_norm_out(hidden_states, nnx.silu))


def time_waves(config: UNet2DConditionConfig, timesteps: jax.Array) -> jax.Array:
    """Sines and cosines of timesteps `(B,)`, float32 `(B, block_out_channels[0])`."""
    return timestep_embedding(
        timesteps,
        config.block_out_channels[0],
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )


def _spec(config: UNet2DConditionConfig, block_type: str, level: int, num_layers: int, dtype: DTypeLike) -> BlockSpec:
    return BlockSpec(
        block_type=block_type,
        num_layers=num_layers,
        temb_channels=config.time_embed_dim,
        groups=config.norm_num_groups,
        epsilon=config.norm_eps,
        time_scale_shift=config.resnet_time_scale_shift,
        heads=config.per_block("attention_head_dim")[level],
        head_dim=config.per_block("attention_head_dim")[level],
        context_dim=config.per_block("cross_attention_dim")[level],
        transformer_layers=config.per_block("transformer_layers_per_block")[level],
        use_linear_projection=config.use_linear_projection,
        only_cross_attention=config.per_block("only_cross_attention")[level],
        dtype=dtype,
    )


def down_blocks(config: UNet2DConditionConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> tuple[nnx.List, list[int]]:
    """The down blocks, and the channels of every skip in the order they arise."""
    channels = config.block_out_channels
    blocks, skip_channels = [], [channels[0]]
    for level, block_type in enumerate(config.down_block_types):
        last = level == len(channels) - 1
        num_layers = config.per_block("layers_per_block")[level]
        blocks.append(
            DownBlock2D(
                _spec(config, block_type, level, num_layers, dtype),
                channels[max(level - 1, 0)],
                channels[level],
                downsample_padding=None if last else config.downsample_padding,
                rngs=rngs,
            )
        )
        skip_channels += [channels[level]] * (num_layers + (not last))
    return nnx.List(blocks), skip_channels


def mid_block(config: UNet2DConditionConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> MidBlock2D:
    """The middle, at the lowest resolution."""
    pairs = int(config.mid_block_type == "UNetMidBlock2DCrossAttn")
    # In diffusers the middle keeps its self-attention, whatever `only_cross_attention` says.
    spec = dataclasses.replace(_spec(config, "CrossAttn", -1, pairs, dtype), only_cross_attention=False)
    width = config.block_out_channels[-1]
    scale = config.mid_block_scale_factor
    return MidBlock2D(
        [spec.resnet(width, width, output_scale_factor=scale, rngs=rngs) for _ in range(pairs + 1)],
        [spec.attention(width, rngs=rngs) for _ in range(pairs)],
    )


def _up_blocks(config: UNet2DConditionConfig, skip_channels: list[int], dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.List:
    channels = config.block_out_channels
    remaining = list(skip_channels)
    blocks, width = [], channels[-1]
    for index, block_type in enumerate(config.up_block_types):
        level = len(channels) - 1 - index
        num_layers = config.per_block("layers_per_block")[level] + 1
        blocks.append(
            UpBlock2D(
                _spec(config, block_type, level, num_layers, dtype),
                width,
                channels[level],
                [remaining.pop() for _ in range(num_layers)],
                upsample=level > 0,
                rngs=rngs,
            )
        )
        width = channels[level]
    return nnx.List(blocks)
