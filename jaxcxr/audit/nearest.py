"""The training image that is nearest to each image: found on the devices, block by block, and measured in float64."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.audit import pixels
from jaxcxr.evaluation.batches import InBatches
from jaxcxr.evaluation.kept import Arrays, keep, one_by_one
from jaxcxr.parallel import mesh as meshes

PER_SHARD = 512
_MOST_OF_COVARIANCE = 5000  # images of a set
_CANDIDATES = 8  # that are measured in float64
_AT_ONCE = 128 * 2**20  # bytes of a block of similarities


class Space(NamedTuple):
    """How alike two images are, by their features.

    Attributes:
      views: features (N, D) -> unit vectors (V, N, D), whose products find candidates; the first ones are of the images
        as they are.
      similarity: features (P, D) of images and of as many others -> float64 (P,), at most 1.
    """

    views: Callable[[np.ndarray], np.ndarray]
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]


def of_network(train: np.ndarray, held_out: np.ndarray) -> Space:
    """Cosines of features (N, D) of a network, whitened by the covariance S of both sets of real images: of
    (S + s I)^−½ (x − mean), with s the mean variance of a feature.

    Features of radiographs share most of what they have: without the mean, and with directions that vary much made
    less, the cosine tells copies from other patients. Both sets count alike, each with a half, so that training images
    are treated as held-out ones are.
    """
    parts = [each[_places(len(each))].astype(np.float64) for each in (train, held_out)]
    mean = np.mean([each.mean(axis=0) for each in parts], axis=0)
    covariance = np.mean([(each - mean).T @ (each - mean) / len(each) for each in parts], axis=0)
    variances, directions = np.linalg.eigh(covariance)
    ridge = max(float(variances.mean()), np.finfo(np.float64).tiny)
    whitening = directions / np.sqrt(np.maximum(variances, 0) + ridge)

    def whitened(values: np.ndarray) -> np.ndarray:
        return unit((values.astype(np.float64) - mean) @ whitening)

    return Space(
        lambda values: whitened(values)[None],
        lambda first, other: np.einsum("pd,pd->p", whitened(first), whitened(other)),
    )


def _places(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)[:_MOST_OF_COVARIANCE]


def of_pixels() -> Space:
    """`pixels.aligned_correlation` of vectors of `pixels.Stacked`."""

    def views(values: np.ndarray) -> np.ndarray:
        return np.stack([unit(each - each.mean(axis=1, keepdims=True)) for each in (values, pixels.mirrored(values))])

    return Space(views, pixels.aligned_correlation)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of length 1; those of zeros stay so."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


class Nearest(NamedTuple):
    """Of each image, (N,): the place of the most similar reference image, how similar it is, and how similar the most
    similar one of another patient is; NaN where there is one patient alone."""

    place: np.ndarray
    similarity: np.ndarray
    second: np.ndarray


def nearest(
    space: Space,
    images: np.ndarray,
    reference: np.ndarray,
    patients: Sequence[str],
    folder: Path,
    own: Sequence[str] | None = None,
) -> Nearest:
    """The most similar reference images, kept in files: a job that was stopped resumes.

    Candidates are found in float32 on this process's devices, a block of images against all reference images. Processes
    share the blocks.

    Args:
      space: what is similar.
      images: features, (N, D).
      reference: features, (M, D).
      patients: of the reference images, (M,).
      folder: where what is found is kept.
      own: whose the images are, (N,), where reference images of the same patient do not count.

    Raises:
      UserError: as of `kept.keep`.
    """
    _, codes = np.unique([*patients, *(own or ())], return_inverse=True)
    theirs = codes[: len(patients)].astype(np.int32)
    ours = codes[len(patients) :].astype(np.int32) if own is not None else np.full(len(images), -1, np.int32)
    search = _Search(space, reference, theirs)

    def compute(rows: slice) -> Arrays:
        first, similarity = search(images[rows], ours[rows])
        known = first >= 0
        _, second = search(images[rows], np.where(known, theirs[first], ours[rows]), ours[rows])
        return {"place": first, "similarity": similarity, "second": second}

    name = _digest(space.views(reference[:1]), images, reference, codes, np.array([_CANDIDATES]))
    return Nearest(**keep(folder / name, len(images), PER_SHARD, one_by_one(compute)))


def _digest(*arrays: np.ndarray) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for array in arrays:
        whole.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


class _Search:
    """Finds and measures the best reference image of each image."""

    def __init__(self, space: Space, reference: np.ndarray, patients: np.ndarray):
        self._space, self._reference = space, reference
        count = min(_CANDIDATES, len(reference))

        def candidates(weights: Mapping[str, jax.Array], views: jax.Array, *left_out: jax.Array) -> jax.Array:
            similar = jnp.einsum("bvd,md->bvm", views, weights["reference"], precision="highest").max(axis=1)
            for patient in left_out:
                similar = jnp.where(weights["patients"] == patient[:, None], -jnp.inf, similar)
            best, places = jax.lax.top_k(similar, count)
            return jnp.where(jnp.isfinite(best), places, -1)

        weights = {"reference": space.views(reference)[0].astype(np.float32), "patients": patients}
        batch = min(PER_SHARD, max(1, _AT_ONCE // (4 * len(reference))))
        self._find = InBatches(candidates, weights, batch, meshes.own_mesh())

    def __call__(self, images: np.ndarray, *left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place, −1 for none, and similarity, NaN for none, of the best reference image of each of N images.

        Args:
          images: features, (N, D).
          left_out: patients, (N,) each, whose images do not count.
        """
        views = self._space.views(images).swapaxes(0, 1).astype(np.float32)
        left_out = tuple(each.astype(np.int32) for each in (*left_out, left_out[0])[:2])  # one program serves both
        places = np.concatenate(list(self._find(views, *left_out)))
        similar = np.full(places.shape, -np.inf)
        rows, columns = np.nonzero(places >= 0)
        similar[rows, columns] = self._space.similarity(images[rows], self._reference[places[rows, columns]])
        best = similar.argmax(axis=1)
        at = np.arange(len(images)), best
        found = places[at]
        return found, np.where(found >= 0, similar[at], np.nan)
