"""A features job: the images of a set -> a vector each, on all devices and processes, kept for the next metric."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jaxcxr.data.images import UnreadableImage
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import Chosen
from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.evaluation.kept import keep
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.models.compute import compiler_options
from jaxcxr.models.named import with_parameters
from jaxcxr.parallel import mesh as meshes

PER_SHARD = 256
_VERSION = 1  # of what a shard holds; another one is computed anew
_THREADS = 8


class Described(Protocol):
    """What decides a vector of an image: an extractor with its weights and preprocessing, as `Chosen`."""

    @property
    def name(self) -> str:
        """For the rows of an evaluation."""
        ...

    @property
    def digest(self) -> str:
        """Of the weights."""
        ...

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """What the network takes of an image, uint8 (H, W)."""
        ...


class Vectors(Protocol):
    """What makes vectors of prepared images."""

    def features(self, inputs: Iterable[np.ndarray | None]) -> np.ndarray:
        """Features, float32 (N, D), of prepared images; where there is none, NaN."""
        ...


Open = Callable[[int], Vectors]
"""The size of a batch -> what computes."""


class Extracted(NamedTuple):
    """What a job gives of a set of N images.

    Attributes:
      values: float32 (N, D); those of an image that cannot be read are NaN.
      readable: bool (N,).
      pixels: a digest of each image's pixels, bytes (N,); equal images have equal ones.
    """

    values: np.ndarray
    readable: np.ndarray
    pixels: np.ndarray


def extract(
    images: ImageSet, chosen: Described, size: int, folder: Path, batch_size: int = 32, open_network: Open | None = None
) -> Extracted:
    """The features of all images of a set; each shard of them is computed once, by any process.

    Args:
      images: the set.
      chosen: extractor, weights and preprocessing.
      size: side in pixels that images are brought to first, padded to a square; 0 leaves them as they are.
      folder: where features are kept, under a digest of images, size, weights and preprocessing.
      batch_size: images at once, of all devices of a process together.
      open_network: makes what computes the vectors, of a batch's size; the network of `chosen` if None.

    Raises:
      UserError: the folder cannot be written, another job writes the same features, or no image can be read.
    """
    own, total = folder / _identity(images, chosen, size), len(images.items)
    opened = open_network or functools.partial(_network, chosen)

    def compute(shards: Sequence[slice]) -> Iterator[Mapping[str, np.ndarray]]:
        return _compute(images, chosen, size, shards, opened(batch_size)) if shards else iter(())

    found = Extracted(**keep(own, total, PER_SHARD, compute))
    if not found.readable.any():
        raise UserError(f"{images.name}: none of its {total} images can be read by {chosen.name}")
    return found


def _network(chosen: Any, batch_size: int) -> "Network":
    return Network(chosen, batch_size, meshes.own_mesh())


def _identity(images: ImageSet, chosen: Described, size: int) -> str:
    whole = [_VERSION, images.stamp, chosen.name, chosen.digest, size]
    return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()


def _compute(
    images: ImageSet, chosen: Described, size: int, shards: Sequence[slice], network: Vectors
) -> Iterator[Mapping[str, np.ndarray]]:
    read = functools.partial(_prepared, chosen, size)
    left = sum(rows.stop - rows.start for rows in shards)
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(total=left, desc=f"{chosen.name} {images.name}", unit="img", disable=jax.process_index() > 0) as bar,
    ):
        for rows in shards:
            prepared = threads.map(read, images.items[rows])
            digests: list[bytes] = []

            def inputs(prepared: Any = prepared, digests: list[bytes] = digests) -> Iterator[np.ndarray | None]:
                for each, digest in prepared:
                    digests.append(digest)
                    bar.update()
                    yield each

            values = network.features(inputs())
            readable = np.array([digest != b"" for digest in digests])
            yield Extracted(values, readable, np.array(digests, "S16"))._asdict()


def _prepared(chosen: Described, size: int, item: Item) -> tuple[np.ndarray | None, bytes]:
    """What the network takes of an image, None where it cannot be read; and the digest of its pixels, empty then."""
    try:
        pixels = item.load(size)
    except (FileNotFoundError, UnreadableImage):
        return None, b""
    digest = hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    return chosen.prepared(pixels), digest


class Network:
    """An extractor on the devices of a mesh, for batches of one size."""

    def __init__(self, chosen: Chosen, batch_size: int, mesh: Mesh):
        self._width = chosen.extractor.width
        self._size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = meshes.batch_sharding(mesh)
        self._weights = jax.device_put(chosen.weights, meshes.replicated(mesh))
        module = abstract_network(chosen.extractor)

        @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh))
        def forward(weights: Any, inputs: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise
                return with_parameters(module, weights)(inputs)  # type: ignore[operator]

        self._forward = forward

    def features(self, inputs: Iterable[np.ndarray | None]) -> np.ndarray:
        """Features, float32 (N, D), of prepared images; where there is none, NaN."""
        values: list[np.ndarray] = []
        places: list[int] = []
        waiting: list[np.ndarray] = []

        def flush() -> None:
            for place, value in zip(places, self._batch(waiting) if waiting else (), strict=True):
                values[place] = value
            places.clear()
            waiting.clear()

        for place, each in enumerate(inputs):
            values.append(np.full(self._width, np.nan, np.float32))
            if each is not None:
                places.append(place)
                waiting.append(each)
            if len(waiting) == self._size:
                flush()
        flush()
        return np.stack(values)

    def _batch(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Of up to a batch, which is filled up, so that one program serves all."""
        stacked = np.stack(inputs)
        filled = np.pad(stacked, ((0, self._size - len(stacked)), *((0, 0),) * (stacked.ndim - 1)), mode="edge")
        return np.asarray(self._forward(self._weights, jax.device_put(filled, self._sharding)))[: len(stacked)]
