"""An autoencoder whose latents have channels of one width that do not go together.

Noise is added to all of an image's latents alike. Where one channel holds brightness at ten times the width of the
others, what the others hold, thin lines and small shadows, drowns first, and the U-Net hardly learns it. The whitening
is linear in the channels of a pixel, as are the autoencoder's first and last convolutions of latents, `quant_conv` and
`post_quant_conv`. It is folded into these, so the autoencoder reconstructs what it did.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.tensors import Tensor
from jaxcxr.models.vae import normalize, split_moments
from jaxcxr.parsing import to_json

LEAST_SHARE = 0.05
"""Directions of less than this share of the mean variance are not widened to 1: they hold next to nothing."""
_AT_ONCE = 16


def whitened(checkpoint: Checkpoint, images: np.ndarray) -> Checkpoint:
    """The checkpoint with latents that are whitened over some images.

    Their channels then have mean 0 over these images and no correlation. All have one variance, but for directions of
    less than `LEAST_SHARE`. Scaled by the `scaling_factor`, their mean variance is 1. The posterior's log-variance of a
    channel is a mean of those that are mixed into it, exact where they are alike.

    Args:
      checkpoint: an autoencoder, and no other network, whose weights would be of other latents.
      images: uint8 (N, H, W), of what it is for; a few hundred are enough.

    Raises:
      UserError: there is another network, or the autoencoder has no convolutions to fold it into.
    """
    if checkpoint.networks != ["vae"]:
        others = ", ".join(name for name in checkpoint.networks if name != "vae") or "no autoencoder"
        raise UserError(f"whitening: is for an autoencoder before anything learns from its latents; there is {others}")
    config = json.loads(checkpoint.files["vae/config.json"])
    tensors = checkpoint.tensors
    if not {"vae.quant_conv.kernel", "vae.post_quant_conv.kernel"} <= set(tensors):
        raise UserError("whitening: this autoencoder has no quant_conv and post_quant_conv to fold it into")
    mean, covariance, logvar = _statistics(checkpoint, images)
    variances, directions = np.linalg.eigh(covariance)
    widths = np.sqrt(np.maximum(variances, LEAST_SHARE * variances.mean()))
    whiten, color = directions / widths @ directions.T, directions * widths @ directions.T

    kernel, bias = (_read(tensors[f"vae.quant_conv.{name}"]) for name in ("kernel", "bias"))
    latent = len(mean)
    kernel[..., :latent], bias[:latent] = kernel[..., :latent] @ whiten, (bias[:latent] - mean) @ whiten
    # The variance of a sum of independent numbers, to first order in how their log-variances differ from these.
    parts = whiten**2 * np.exp(logvar)[:, None]
    total = parts.sum(axis=0)
    shares = parts / total
    kernel[..., latent:] = kernel[..., latent:] @ shares
    bias[latent:] = (bias[latent:] - logvar) @ shares + np.log(total)
    back, offset = (_read(tensors[f"vae.post_quant_conv.{name}"]) for name in ("kernel", "bias"))
    offset, back = offset + mean @ back[0, 0], color @ back
    folded = {
        "vae.quant_conv.kernel": kernel,
        "vae.quant_conv.bias": bias,
        "vae.post_quant_conv.kernel": back,
        "vae.post_quant_conv.bias": offset,
    }
    factor = float(f"{1 / np.sqrt((variances / widths**2).mean()):.5g}")
    changed = {name: Tensor.of(value.astype(tensors[name].dtype)) for name, value in folded.items()}
    files = checkpoint.files | {"vae/config.json": to_json(config | {"scaling_factor": factor})}
    return Checkpoint(files, tensors | changed)


def _read(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.read(), np.float64)


def _statistics(checkpoint: Checkpoint, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the latents of images: their mean (C,), covariance (C, C) and the mean log-variance (C,), float64."""
    pipeline = interop.load_read(checkpoint)
    parameters = pipeline.parameters()

    @jax.jit
    def moments(parameters, images):
        vae = pipeline.with_parameters(parameters).vae
        return jnp.stack(split_moments(vae.encode(normalize(images[..., None], vae.config.in_channels))))

    starts = range(0, len(images), _AT_ONCE)
    parts = [np.asarray(moments(parameters, images[start : start + _AT_ONCE]), np.float64) for start in starts]
    latents, logvar = np.concatenate(parts, axis=1).reshape(2, -1, parts[0].shape[-1])
    return latents.mean(axis=0), np.cov(latents.T), logvar.mean(axis=0)
