"""The down, middle and up blocks of the U-Net."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxcxr.models.attention import SelfAttention2D, Transformer2DModel
from jaxcxr.models.layers import Downsample2D, ResnetBlock2D, Upsample2D


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What the layers of one block have in common.

    `block_type` names the attention: `CrossAttn…` is a transformer that looks at the context, `Attn…`
    is self-attention, anything else has none. `heads` is the number of heads of the first kind,
    `head_dim` the width of a head of the second (diffusers reads both from `attention_head_dim`).
    """

    block_type: str
    num_layers: int
    temb_channels: int
    groups: int
    epsilon: float
    time_scale_shift: str
    heads: int
    head_dim: int
    context_dim: int
    transformer_layers: int
    use_linear_projection: bool
    only_cross_attention: bool
    dtype: DTypeLike

    def resnet(
        self, in_channels: int, out_channels: int, *, output_scale_factor: float = 1.0, rngs: nnx.Rngs
    ) -> ResnetBlock2D:
        """One residual block of this kind."""
        return ResnetBlock2D(
            in_channels,
            out_channels,
            temb_channels=self.temb_channels,
            groups=self.groups,
            epsilon=self.epsilon,
            time_scale_shift=self.time_scale_shift,
            output_scale_factor=output_scale_factor,
            dtype=self.dtype,
            rngs=rngs,
        )

    @property
    def has_attention(self) -> bool:
        """Whether an attention layer follows every residual block."""
        return self.block_type.startswith(("CrossAttn", "Attn"))

    def attention(self, channels: int, *, rngs: nnx.Rngs) -> Transformer2DModel | SelfAttention2D:
        """One attention layer of this kind."""
        if self.block_type.startswith("Attn"):
            return SelfAttention2D(
                channels,
                head_dim=self.head_dim,
                groups=self.groups,
                epsilon=self.epsilon,
                dtype=self.dtype,
                rngs=rngs,
            )
        return Transformer2DModel(
            channels,
            heads=self.heads,
            num_layers=self.transformer_layers,
            context_dim=self.context_dim,
            groups=self.groups,
            use_linear_projection=self.use_linear_projection,
            only_cross_attention=self.only_cross_attention,
            dtype=self.dtype,
            rngs=rngs,
        )


class DownBlock2D(nnx.Module):
    """Residual blocks, each with its attention where the spec has one, then halving."""

    def __init__(
        self,
        spec: BlockSpec,
        in_channels: int,
        out_channels: int,
        *,
        downsample_padding: int | None,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (spec.num_layers - 1)
        if spec.has_attention:
            self.attentions = nnx.List(spec.attention(out_channels, rngs=rngs) for _ in widths)
        self.resnets = nnx.List(spec.resnet(width, out_channels, rngs=rngs) for width in widths)
        self.downsamplers = (
            None
            if downsample_padding is None
            else nnx.List([Downsample2D(out_channels, padding=downsample_padding, dtype=spec.dtype, rngs=rngs)])
        )

    def __call__(
        self, hidden_states: jax.Array, temb: jax.Array, context: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """`(B, H, W, in)` to the block's output and every layer's, which the up blocks will ask for."""
        skips = []
        for index, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, temb)
            if hasattr(self, "attentions"):
                hidden_states = self.attentions[index](hidden_states, context)
            skips.append(hidden_states)
        if self.downsamplers is not None:
            hidden_states = self.downsamplers[0](hidden_states)
            skips.append(hidden_states)
        return hidden_states, skips


class MidBlock2D(nnx.Module):
    """A residual block, then any number of pairs of attention and residual block."""

    def __init__(self, resnets: Sequence[ResnetBlock2D], attentions: Sequence[nnx.Module]):
        self.attentions = nnx.List(attentions)
        self.resnets = nnx.List(resnets)

    def __call__(
        self, hidden_states: jax.Array, temb: jax.Array | None = None, context: jax.Array | None = None
    ) -> jax.Array:
        """`(B, H, W, C) -> (B, H, W, C)`."""
        hidden_states = self.resnets[0](hidden_states, temb)
        for index, attention in enumerate(self.attentions):
            hidden_states = attention(hidden_states, context)
            hidden_states = self.resnets[index + 1](hidden_states, temb)
        return hidden_states


class UpBlock2D(nnx.Module):
    """Residual blocks that take in the skips, each with its attention where the spec has one, then doubling."""

    def __init__(
        self,
        spec: BlockSpec,
        in_channels: int,
        out_channels: int,
        skip_channels: Sequence[int],
        *,
        upsample: bool,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (spec.num_layers - 1)
        if spec.has_attention:
            self.attentions = nnx.List(spec.attention(out_channels, rngs=rngs) for _ in widths)
        self.resnets = nnx.List(
            spec.resnet(width + skip, out_channels, rngs=rngs)
            for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.upsamplers = nnx.List([Upsample2D(out_channels, dtype=spec.dtype, rngs=rngs)]) if upsample else None

    def __call__(
        self, hidden_states: jax.Array, skips: list[jax.Array], temb: jax.Array, context: jax.Array
    ) -> jax.Array:
        """`(B, H, W, in)` to `(B, 2H, 2W, out)`; takes its skips off the end of `skips`."""
        for index, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, temb, skips.pop())
            if hasattr(self, "attentions"):
                hidden_states = self.attentions[index](hidden_states, context)
        if self.upsamplers is not None:
            _, height, width, _ = skips[-1].shape
            hidden_states = self.upsamplers[0](hidden_states, size=(height, width))
        return hidden_states
