"""From conditions and noise to pictures with a pipeline's three networks: one batch, one program."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcxr.data import tokens
from jaxcxr.diffusion import editing
from jaxcxr.diffusion.guidance import guided
from jaxcxr.diffusion.loop import sample
from jaxcxr.diffusion.samplers import Sampler
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import inpainting_inputs
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.vae import normalize, sample_posterior, split_moments
from jaxcxr.parallel import mesh as meshes

Batch = Mapping[str, jax.Array | np.ndarray]
"""What B pictures are drawn from:

  ids: int32 (B, M, L), M texts; absent if there are none.
  embeds: float32 (B, G, L, D), states that are given, beside those of the texts; absent if there are none.
  mix: float32 (B, K, M + G): a condition's states are this sum of those. Without it each text is a condition, K = M.
  weights: float32 (B, K), of the predictions as in `guided`; (B, K + 1) if the unconditional states come before them.
  noise: float32 (B, h, w, C).

Where an image is edited also:

  image: uint8 (B, H, W, 1).
  control: uint8 (B, H, W, 3), the condition image of a ControlNet; may be there without `image` too.
  mask: uint8 (B, H, W, 1), 1 where it is painted anew; or in its place
  edit_mask, keep_mask: uint8 (B, H, W, 1), for `editing.edit`.
"""

Generate = Callable[[Any, Batch, jax.Array, jax.Array | None], jax.Array]
"""(parameters, batch, keys (B,), unconditional states (L, D) or None) -> pictures, float32 (B, H, W, C) in [0, 1].

A picture that has a value that is not finite, itself or its latents, is NaN throughout.
"""

# Folded into a picture's key for draws besides those of the sampler's calls, whose numbers are small.
_IMAGE, _MASKED_IMAGE = 2**31, 2**31 + 1


def make_generate(
    pipeline: StableDiffusion,
    sampler: Sampler,
    mesh: Mesh,
    attention: str = "auto",
    *,
    rescale: float = 0.0,
    keep_outside: bool = False,
    control_scale: float = 1.0,
) -> Generate:
    """The generation of one batch, to be compiled.

    Args:
      pipeline: the networks, whose parameters may be shapes only.
      sampler: the steps.
      mesh: the devices it runs on.
      attention: as of `models.compute.specialize`.
      rescale: of the guidance, see `guided`.
      keep_outside: paste the image's own pixels where it is not painted anew.
      control_scale: what a ControlNet adds is multiplied by it.

    Raises:
      UserError: the checkpoint has no text encoder, or its U-Net asks for more than text.
    """
    require_text(pipeline)
    pipeline = pipeline.specialized(attention=attention, remat="none", platform=mesh.devices.flat[0].platform)

    def generate(parameters, batch, keys, unconditional=None):
        networks = pipeline.with_parameters(parameters)
        states = _states(networks.text_encoder, batch, unconditional)
        unet: Callable[..., jax.Array] = networks.unet
        if "control" in batch:
            condition = batch["control"].astype(jnp.float32) / 255
            unet = editing.with_control(unet, networks.controlnet, condition, control_scale)
        latents = _latents(networks, unet, sampler, batch, states, keys, rescale)
        image = networks.vae.decode(latents / networks.vae.config.scaling_factor).astype(jnp.float32)
        # Clipping would make black and white of what is infinite.
        finite = jnp.isfinite(latents).all((1, 2, 3)) & jnp.isfinite(image).all((1, 2, 3))
        image = jnp.clip(image / 2 + 0.5, 0, 1)
        if keep_outside:
            kept = batch["keep_mask"] if "keep_mask" in batch else 1 - batch["mask"]
            image = jnp.where(kept > 0, batch["image"].astype(jnp.float32) / 255, image)
        return jnp.where(finite[:, None, None, None], image, jnp.nan)

    return meshes.within(mesh, generate)


def unconditional_states(pipeline: StableDiffusion, parameters: Any) -> jax.Array:
    """The text encoder's states of the empty prompt, (L, D)."""
    empty = tokens.encode(pipeline.tokenizer, [""], tokens.length(pipeline.tokenizer))
    return pipeline.with_parameters(parameters).text_encoder(jnp.asarray(empty))[0]


def _states(
    encode: Callable[[jax.Array], jax.Array], batch: Mapping[str, jax.Array], unconditional: jax.Array | None
) -> jax.Array:
    """The conditions' states, (N, B, L, D)."""
    found = []
    if "ids" in batch:
        ids = batch["ids"]
        encoded = encode(ids.reshape(-1, ids.shape[-1]))
        found.append(encoded.reshape(*ids.shape[:2], *encoded.shape[1:]))
    if "embeds" in batch:
        found.append(batch["embeds"])
    states = jnp.concatenate(found, axis=1)
    if "mix" in batch:
        states = jnp.einsum("bkm,bmld->bkld", batch["mix"], states)
    states = states.swapaxes(0, 1)
    if unconditional is None:
        return states
    shared = jnp.broadcast_to(unconditional, states.shape[1:])
    return jnp.concatenate([shared[None], states])


def _latents(
    networks: StableDiffusion,
    unet: Callable[..., jax.Array],
    sampler: Sampler,
    batch: Mapping[str, jax.Array],
    states: jax.Array,
    keys: jax.Array,
    rescale: float,
) -> jax.Array:
    """The scaled latents of new or edited images, float32 (B, h, w, C)."""
    noise, weights = batch["noise"], batch["weights"].T
    if "image" not in batch:
        return sample(guided(unet, states, weights, rescale), sampler, noise * sampler.initial_scale, keys)
    image = normalize(batch["image"], networks.vae.config.in_channels)
    factor = networks.vae.config.vae_scale_factor
    if "edit_mask" in batch:
        masks = {name: editing.to_latent_size(batch[name], factor) for name in ("edit_mask", "keep_mask")}
        clean = _encode(networks, image)
        return editing.edit(unet, states, weights, sampler, clean, noise, keys, **masks, rescale=rescale)
    clean = _encode(networks, image, _folded(keys, _IMAGE))
    if "mask" not in batch:
        return sample(guided(unet, states, weights, rescale), sampler, editing.noised(clean, noise, sampler), keys)
    # A whole run starts from noise alone, as in diffusers.
    start = editing.noised(clean, noise, sampler) if sampler.partial else noise * sampler.initial_scale
    after = None
    if is_inpainting(networks):
        channels = inpainting_channels(networks, image, batch["mask"], _folded(keys, _MASKED_IMAGE))
        unet = editing.with_channels(unet, channels)
    else:
        after = editing.restore_outside(clean, noise, editing.to_latent_size(batch["mask"], factor))
    return sample(guided(unet, states, weights, rescale), sampler, start, keys, after)


def inpainting_channels(networks: StableDiffusion, image: jax.Array, mask: jax.Array, keys: jax.Array) -> jax.Array:
    """What a U-Net of inpainting sees behind x: the mask, and the latents of the image with its masked part gray.

    Args:
      networks: one has the autoencoder.
      image: in [−1, 1], float32 (B, H, W, C).
      mask: 1 where it is painted anew, (B, H, W, 1).
      keys: of the draw of the latents, (B,).

    Returns:
      float32 (B, h, w, 1 + latent channels).
    """
    seen = _encode(networks, jnp.where(mask > 0, 0.0, image), keys)
    return jnp.concatenate([editing.to_latent_size(mask, networks.vae.config.vae_scale_factor), seen], axis=-1)


def _encode(networks: StableDiffusion, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Scaled latents of an image in [−1, 1]: a draw, as in diffusers, or without keys the mean."""
    mean, logvar = split_moments(networks.vae.encode(image))
    return (mean if keys is None else sample_posterior(mean, logvar, keys)) * networks.vae.config.scaling_factor


def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def require_text(pipeline: StableDiffusion) -> None:
    """Raises UserError unless the U-Net is conditioned by text, and by nothing else."""
    if "text_encoder" not in pipeline.networks:
        raise UserError(
            "this checkpoint has no text_encoder, so there is no prompt to draw or guide by; give a whole pipeline"
        )
    pipeline.require_text_alone()


def is_inpainting(pipeline: StableDiffusion) -> bool:
    """Whether the U-Net is given a mask and a masked image beside x, as those of inpainting checkpoints are."""
    return pipeline.unet.config.in_channels == inpainting_inputs(pipeline.vae.config.latent_channels)


def latent_shape(pipeline: StableDiffusion, size: int, *, inpaints: bool = False) -> tuple[int, int, int]:
    """(h, w, C) of the latents of pictures of side `size`.

    Args:
      pipeline: the networks.
      size: pixels.
      inpaints: whether each picture has an image and a mask, as a U-Net of inpainting wants it.

    Raises:
      UserError: the autoencoder draws none of that side, or the U-Net does not denoise its latents alone.
    """
    latents = pipeline.vae.config.latent_channels
    for name in ("in_channels", "out_channels"):
        if (channels := getattr(pipeline.unet.config, name)) == latents:
            continue
        if name == "in_channels" and is_inpainting(pipeline):
            if inpaints:
                continue
            raise UserError(
                f"unet/config.json: in_channels {channels} (inpainting): every picture wants an image and a mask; give"
                " --image and --mask, or a text-to-image checkpoint"
            )
        what = " (editing)" if name == "in_channels" and channels == 2 * latents else ""
        raise UserError(
            f"unet/config.json: {name} {channels}{what} is not supported; the autoencoder's latent_channels are"
            f" {latents}, and text-to-image needs the same number; give a text-to-image checkpoint"
        )
    factor = pipeline.vae.config.vae_scale_factor
    if size < 1 or size % factor:
        raise UserError(f"pictures of {size} pixels: this autoencoder wants a multiple of {factor}")
    return size // factor, size // factor, latents


def default_size(pipeline: StableDiffusion) -> int:
    """Pixels of a side that the U-Net was trained for.

    Raises:
      UserError: its config does not say, or says that pictures are not square.
    """
    latents = pipeline.unet.config.sample_size
    sides = {latents} if isinstance(latents, int) else set(latents or ())
    if len(sides) != 1:
        raise UserError(f"unet/config.json: sample_size {latents} is not one number; give --size")
    return sides.pop() * pipeline.vae.config.vae_scale_factor


def initial_noise(seed: int, index: int, shape: tuple[int, int, int]) -> np.ndarray:
    """x_T of picture number `index` of a job, float32 `shape`; it depends on nothing but these."""
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape))


def to_bytes(pictures: jax.Array | np.ndarray, channels: int = 1) -> np.ndarray:
    """uint8 (…, channels) of pictures (…, C) in [0, 1]; for one channel those of a picture are averaged.

    NaN is black.
    """
    pictures = np.nan_to_num(np.asarray(pictures, np.float32))
    if channels == 1:
        pictures = pictures.mean(axis=-1, keepdims=True)
    return np.round(pictures * 255).astype(np.uint8)
