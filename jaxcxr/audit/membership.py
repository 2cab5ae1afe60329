"""What a model itself says of its training images: its loss on them, and how well it inverts them (SecMI)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.data import tokens
from jaxcxr.diffusion.objective import denoising_target
from jaxcxr.diffusion.process import PREDICTIONS
from jaxcxr.diffusion.schedule import add_noise
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.extractors.extractor import digest
from jaxcxr.evaluation.kept import keep, one_by_one
from jaxcxr.evaluation.metrics.classification import auroc, roc_curve
from jaxcxr.generate import require_text
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.vae import normalize, split_moments
from jaxcxr.parallel import mesh as meshes

ATTACKS = ("loss", "secmi")
RATES = (0.01, 0.001)
"""Of false positives, at which the rate of true ones is given where there are images enough."""
LOSSES = 10
"""Timesteps of the loss: the middles of as many equal parts of the process."""
PER_SHARD = 64
_INTERVALS, _STEPS = 100, 10  # SecMI: the process has so many intervals, and an image is inverted so many of them far


class Attack(NamedTuple):
    """How well an error tells members from others.

    Attributes:
      name: of `ATTACKS`.
      auc: the chance that a member's error is lower than another image's; with its 95 % interval by patient.
      low: its lower end.
      high: its upper end.
      found: share of the members that are found, by rate of false positives; no rate that 1 / rate others do not allow.
      members: how many.
      others: how many.
    """

    name: str
    auc: float
    low: float
    high: float
    found: dict[float, float]
    members: int
    others: int


def errors(
    pipeline: StableDiffusion,
    images: np.ndarray,
    texts: Sequence[str],
    folder: Path,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The errors of `ATTACKS` of each image under its text, float32 (N,); low ones speak for a member.

    `loss` is the squared error of what the network predicts, the mean over `LOSSES` timesteps with fixed noise.
    `secmi` is SecMI_stat (Duan et al. 2023, arXiv 2302.01316): the latents are inverted by DDIM to a tenth of the
    process in ten steps, then one step further and back; the error is the mean square of what that changes. Both are of
    the mean of the autoencoder's posterior, without guidance.

    Args:
      pipeline: U-Net, autoencoder, text encoder.
      images: uint8 (N, S, S).
      texts: the prompt of each.
      folder: where errors are kept.
      batch_size: images at once, of all devices of a process together.
      seed: of the noise.

    Raises:
      UserError: the checkpoint is not of text alone, or as of `kept.keep`.
    """
    require_text(pipeline)
    ids = tokens.encode(pipeline.tokenizer, list(texts), tokens.length(pipeline.tokenizer))
    places = np.arange(len(images), dtype=np.int32)
    if not len(images):
        return {name: np.empty(0, np.float32) for name in ATTACKS}
    mesh = meshes.own_mesh()
    compute = meshes.within(mesh, functools.partial(_errors, _ready(pipeline), seed))
    run = InBatches(compute, pipeline.parameters(), batch_size, mesh)

    def of(rows: slice) -> Mapping[str, np.ndarray]:
        found = np.concatenate(list(run(images[rows, ..., None], ids[rows], places[rows])))
        return dict(zip(ATTACKS, found.T, strict=True))

    name = digest({**_values(pipeline), "images": images, "ids": ids, "seed": np.array([seed, LOSSES, _STEPS])})
    return keep(folder / name, len(images), PER_SHARD, one_by_one(of))


def _ready(pipeline: StableDiffusion) -> StableDiffusion:
    return pipeline.specialized(attention="auto", remat="none", platform=jax.local_devices()[0].platform)


def _values(pipeline: StableDiffusion) -> dict[str, np.ndarray]:
    scheduler = np.asarray(pipeline.schedule.alphas_cumprod())
    return {name: np.asarray(value) for name, value in pipeline.parameters().items()} | {"alphas": scheduler}


def _errors(
    pipeline: StableDiffusion,
    seed: int,
    parameters: Mapping[str, jax.Array],
    images: jax.Array,
    ids: jax.Array,
    places: jax.Array,
) -> jax.Array:
    """(B, 2), by `ATTACKS`."""
    networks = pipeline.with_parameters(parameters)
    config = networks.vae.config
    latents = split_moments(networks.vae.encode(normalize(images, config.in_channels)))[0] * config.scaling_factor
    states = networks.text_encoder(ids)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(places)
    bar, kind = jnp.asarray(pipeline.schedule.alphas_cumprod()), pipeline.schedule.prediction_type

    def unet(x: jax.Array, timesteps: jax.Array) -> jax.Array:
        return networks.unet(x, timesteps, states).astype(jnp.float32)

    return jnp.stack([_loss(unet, kind, bar, latents, keys), secmi_error(unet, kind, bar, latents)], axis=1)


Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(x (B, h, w, C), timesteps (B,)) -> the network's output."""


def _loss(unet: Denoise, kind: str, bar: jax.Array, latents: jax.Array, keys: jax.Array) -> jax.Array:
    count = len(bar)
    times = jnp.array([(2 * part + 1) * count // (2 * LOSSES) for part in range(LOSSES)], jnp.int32)

    def one(total: jax.Array, timestep: jax.Array) -> tuple[jax.Array, None]:
        own = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, timestep), latents.shape[1:]))(keys)
        timesteps = jnp.full(len(latents), timestep)
        output = unet(add_noise(bar, latents, own, timesteps), timesteps)
        target = denoising_target(kind, bar, latents, own, timesteps)
        return total + jnp.square(output - target).mean(axis=(1, 2, 3)) / LOSSES, None

    return jax.lax.scan(one, jnp.zeros(len(latents)), times)[0]


def secmi_error(unet: Denoise, kind: str, alphas_cumprod: ArrayLike, latents: jax.Array) -> jax.Array:
    """SecMI_stat of latents, (B,); see `errors`.

    Args:
      unet: with its condition bound.
      kind: what it predicts, a key of `PREDICTIONS`.
      alphas_cumprod: ᾱ_t, (T,), T ≥ 200.
      latents: scaled, float32 (B, h, w, C); they stand at timestep 0.
    """
    bar = jnp.asarray(alphas_cumprod, jnp.float32)
    interval = len(bar) // _INTERVALS
    times = np.arange(_STEPS + 2, dtype=np.int32) * interval
    levels = jnp.stack([jnp.sqrt(bar[times]), jnp.sqrt(1 - bar[times])], axis=1)

    def moved(x: jax.Array, timestep: jax.Array, level: jax.Array, other: jax.Array) -> jax.Array:
        """A deterministic step of DDIM between two levels, in either direction (arXiv 2010.02502, equation 13)."""
        output = unet(x, jnp.full(len(x), timestep))
        clean, noise = PREDICTIONS[kind].read(x, output, *level)
        return other[0] * clean + other[1] * noise

    def invert(x: jax.Array, step: Any) -> tuple[jax.Array, None]:
        return moved(x, *step), None

    x, _ = jax.lax.scan(invert, latents, (times[:_STEPS], levels[:_STEPS], levels[1 : _STEPS + 1]))
    further = moved(x, times[_STEPS], levels[_STEPS], levels[_STEPS + 1])
    back = moved(further, times[_STEPS + 1], levels[_STEPS + 1], levels[_STEPS])
    return jnp.square(back - x).mean(axis=(1, 2, 3))


def attack(name: str, members: ArrayLike, others: ArrayLike, patients: ArrayLike, seed: int = 0) -> Attack:
    """How well an error tells members from others; low errors are called members.

    Args:
      name: the error's.
      members: errors of training images, (N,).
      others: errors of held-out images of the same source, (M,).
      patients: of both, (N + M,).
      seed: of the bootstrap.
    """
    scores = -np.concatenate([np.asarray(members, np.float64), np.asarray(others, np.float64)])
    labels = np.arange(len(scores)) < len(np.asarray(members))
    low, high = bootstrap(
        np.stack([labels, scores], axis=1), patients, lambda rows: auroc(rows[:, 0] > 0, rows[:, 1]), seed=seed
    )
    count = int((~labels).sum())
    found = {rate: true_positives_at(labels, scores, rate) for rate in RATES if count >= round(1 / rate)}
    return Attack(name, auroc(labels, scores), float(low), float(high), found, int(labels.sum()), count)


def true_positives_at(labels: ArrayLike, scores: ArrayLike, rate: float) -> float:
    """The greatest rate of true positives of any threshold whose rate of false positives is at most `rate`."""
    curve = roc_curve(labels, scores)
    return float(curve.true_positive_rate[curve.false_positive_rate <= rate].max())
