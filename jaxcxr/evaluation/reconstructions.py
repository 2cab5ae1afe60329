"""What an autoencoder loses: images against their reconstructions, whole, by region, and as a classifier sees them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError
from jaxcxr.evaluation import perceptual
from jaxcxr.evaluation.asked import Scorer
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.extractors.extractor import Weights
from jaxcxr.evaluation.metrics import BETTER, pairs
from jaxcxr.evaluation.metrics.classification import pearson
from jaxcxr.evaluation.metrics.similarity import LEAST_SIDE, ms_ssim, ssim
from jaxcxr.generate import to_bytes
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.vae import reconstruction
from jaxcxr.phantoms.anatomy import Chest, Pose
from jaxcxr.phantoms.classifier import Classifier, see
from jaxcxr.phantoms.studies import Phantom
from jaxcxr.phantoms.truth import CLASSES, NAMES, name_of

Similarity = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""(images, others, range of values) -> a number for each pair, as `metrics.similarity.ssim`."""
_LEVELS = 255
_AT_ONCE = 16  # images whose windows of similarity are computed together


class Measured(NamedTuple):
    """What an autoencoder loses.

    Attributes:
      rows: the numbers; a group that no image belongs to has none.
      worst: by metric, the indices of the images that it is worst for, the worst first.
      left_out: a line for each metric that could not be computed.
    """

    rows: list[Row]
    worst: dict[str, list[int]]
    left_out: list[str]


def reconstruct(
    pipeline: StableDiffusion, images: np.ndarray, batch_size: int = 16, mesh: Mesh | None = None
) -> np.ndarray:
    """What the autoencoder decodes from the mean of each image's posterior, uint8 (N, H, W).

    Args:
      pipeline: has a `vae`; no other network of it is used.
      images: uint8 (N, H, W).
      batch_size: images at once, of all devices together.
      mesh: the devices; all there are if None.

    Raises:
      UserError: there is no autoencoder or image, a side is no multiple of what it shrinks by, or it makes NaN.
    """
    alone = StableDiffusion({"vae": pipeline.vae}, pipeline.files)
    _require_images(images)
    factor = alone.vae.config.vae_scale_factor
    if images.shape[1] % factor or images.shape[2] % factor:
        raise UserError(
            f"images: are of {images.shape[1]} x {images.shape[2]} pixels; this autoencoder wants multiples of {factor}"
        )

    def compute(weights: Mapping[str, jax.Array], batch: jax.Array) -> jax.Array:
        decoded = reconstruction(alone.with_parameters(weights).vae, batch[..., None])
        # Clipping would make black and white of what is infinite.
        return jnp.where(jnp.isfinite(decoded), jnp.clip(decoded / 2 + 0.5, 0, 1), jnp.nan)

    found: list[np.ndarray] = []
    for part in InBatches(compute, alone.parameters(), batch_size, mesh)(images):
        if bad := np.flatnonzero(~np.isfinite(part).all(axis=(1, 2, 3))).tolist():
            place = sum(map(len, found)) + bad[0]
            raise UserError(f"vae: its reconstruction of image {place} is not finite; compute in float32")
        found.append(to_bytes(part)[..., 0])
    return np.concatenate(found)


def phantom_regions(phantoms: Sequence[Phantom]) -> dict[str, np.ndarray]:
    """Where lungs, heart and each finding lie in phantoms of one size: masks bool (N, H, W) by name.

    The lungs are with all that a finding puts in their place, such as fluid, but not the heart, however large. A
    finding is named by `truth.name_of`; one that no phantom has is left out.
    """
    found: dict[str, np.ndarray] = {}
    for place, one in enumerate(phantoms):
        for name, mask in _regions(one):
            whole = found.setdefault(name, np.zeros((len(phantoms), *mask.shape), bool))
            whole[place] |= mask
    order = ("lungs", "heart", *NAMES)
    return {name: found[name] for name in order if name in found}


def _regions(one: Phantom) -> Iterator[tuple[str, np.ndarray]]:
    # As `generator.draw` poses the first exposure of the first study.
    draws = np.random.default_rng([one.patient.seed, one.patient.number, 0, 1000])
    chest = Chest(one.patient.anatomy, Pose.sample(draws, portable=one.view == "AP"), len(one.image))
    heart = chest.heart > 0.5
    for finding, mask in zip(one.findings, one.masks, strict=True):
        yield name_of(finding), mask
        heart = mask if finding.kind == "cardiomegaly" else heart
    yield "heart", heart
    yield "lungs", (chest.cavity * (1 - chest.silhouette) > 0.5) & ~heart


def measure(
    images: np.ndarray,
    reconstructions: np.ndarray,
    patients: ArrayLike,
    *,
    of: str = "",
    regions: Mapping[str, np.ndarray] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    lpips: Mapping[str, Weights] | None = None,
    classifier: Classifier | None = None,
    there: np.ndarray | None = None,
    worst: int = 16,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Measured:
    """Compares images with their reconstructions: `rmse` is in gray levels of 255, `rmse_share` the same over 255,
    `psnr` in dB.

    `findings_kept` is, by class, the share of the images in which the classifier sees the class that still show it once
    reconstructed; of all classes together, the share of the images in which it sees any that still show each of them.

    Args:
      images: uint8 (N, H, W).
      reconstructions: uint8 (N, H, W).
      patients: whose image each is, (N,); intervals resample patients.
      of: what the rows are of, as the autoencoder's name.
      regions: bool (N, H, W) by name, as of `phantom_regions`.
      groups: bool (N,) by name, as `label=edema`: images that numbers are given of apart.
      lpips: weights by net, as of `perceptual.read`.
      classifier: of phantoms; the images are square then.
      there: bool (N, 16), the classes that are truly there; where given, what else the classifier sees does not count.
      worst: how many of the worst images are listed.
      batch_size: of LPIPS, as of `perceptual.distances`.
      mesh: of LPIPS.
      seed: of the resamples.

    Raises:
      UserError: shapes or numbers differ, or the images are too small for what is asked.
    """
    _require_images(images)
    names = np.asarray(patients)
    if images.shape != reconstructions.shape or reconstructions.dtype != np.uint8 or names.shape != images.shape[:1]:
        raise UserError(
            f"reconstructions: are {reconstructions.dtype} of shape {reconstructions.shape}, patients of {names.shape};"
            f" give uint8 {images.shape} and a patient for each"
        )
    errors, left_out = _errors(images, reconstructions), []
    errors["ssim"] = _similarity(ssim, images, reconstructions)
    if min(images.shape[1:]) > LEAST_SIDE:
        errors["ms_ssim"] = _similarity(ms_ssim, images, reconstructions)
    else:
        size = f"{images.shape[1]} x {images.shape[2]}"
        left_out.append(f"ms_ssim: needs images of more than {LEAST_SIDE} pixels a side; these are of {size}")
    for net, weights in (lpips or {}).items():
        errors[f"lpips_{net}"] = perceptual.distances(net, weights, images, reconstructions, batch_size, mesh)
    parts = [("", "", errors)]
    for name, own in (groups or {}).items():
        parts.append(("", name, {metric: np.where(own, values, np.nan) for metric, values in errors.items()}))
    parts += [("", f"region={name}", _errors(images, reconstructions, mask)) for name, mask in (regions or {}).items()]
    if classifier is not None:
        kept = _kept(see(classifier, images).present, see(classifier, reconstructions).present, there)
        parts += [(f"phantom-classifier/{classifier.name}", group, values) for group, values in kept]
    rows = [row for seen_by, group, values in parts for row in _rows((of, seen_by, group), values, names, seed)]
    return Measured(rows, {name: _worst(values, BETTER[name], worst) for name, values in errors.items()}, left_out)


def scores_kept(before: np.ndarray, after: np.ndarray, by: Scorer, patients: np.ndarray, of: str) -> Iterator[Row]:
    """Yields how well a classifier's scores of images agree with those of their reconstructions: Pearson's correlation
    by class, `pearson_kept`, with an interval by patient; a class whose scores are all alike has none.

    Args:
      before: scores of the images, (N, K).
      after: those of the reconstructions.
      by: the classifier.
      patients: (N,).
      of: what the rows are of.
    """
    for place, name in enumerate(by.outputs):
        pair = np.stack([before[:, place], after[:, place]], axis=1)
        value = pearson(pair[:, 0], pair[:, 1])
        if np.isfinite(value):
            low, high = bootstrap(pair, patients, lambda drawn: pearson(drawn[:, 0], drawn[:, 1]))
            number = (float(value), float(low), float(high), None, None, None, len(pair))
            yield Row(of, "pearson_kept", by.name, f"finding={name}", *number)


def _require_images(images: np.ndarray) -> None:
    if images.ndim != 3 or images.dtype != np.uint8 or not len(images):
        raise UserError(f"images: are {images.dtype} of shape {images.shape}; give uint8 (N, H, W), one or more")


def _errors(images: np.ndarray, others: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    error = pairs.rmse(images, others, mask)
    return {"rmse": error, "rmse_share": error / _LEVELS, "psnr": pairs.psnr(images, others, mask, _LEVELS)}


def _similarity(of: Similarity, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), _AT_ONCE)
    return np.concatenate(
        [of(images[start : start + _AT_ONCE], others[start : start + _AT_ONCE], _LEVELS) for start in starts]
    )


def _kept(before: np.ndarray, after: np.ndarray, there: np.ndarray | None) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Whether each image still shows every class, and each class; NaN where it did not."""
    seen = before if there is None else before & there
    every = np.where(seen.any(axis=1), (after | ~seen).all(axis=1), np.nan)
    by_class = np.where(seen, after, np.nan)
    return [("", {"findings_kept": every})] + [
        (f"finding={name}", {"findings_kept": by_class[:, index]}) for index, name in enumerate(CLASSES)
    ]


def _rows(
    names: tuple[str, str, str], values: Mapping[str, np.ndarray], patients: np.ndarray, seed: int
) -> Iterator[Row]:
    """Rows of metrics that are NaN for the same images; `names` are the set, what has seen it and the group."""
    table = np.stack([*values.values()], axis=1).astype(np.float64)
    known = ~np.isnan(table).any(axis=1)
    if not known.any():
        return
    lows, highs = bootstrap(table[known], patients[known], functools.partial(np.mean, axis=0), seed=seed)
    for metric, value, low, high in zip(values, table[known].mean(axis=0), lows, highs, strict=True):
        low, high = (None, None) if np.isnan(low) else (float(low), float(high))
        of, seen_by, group = names
        yield Row(of, metric, seen_by, group, float(value), low, high, None, None, None, int(known.sum()))


def _worst(values: np.ndarray, better: str, count: int) -> list[int]:
    order = np.argsort(values if better == "high" else -values, kind="stable")
    return order[:count].tolist()
