"""A features job: the images of a set -> a vector each, on all devices and processes, kept for the next metric."""

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jaxcxr.data.images import UnreadableImage
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import Chosen
from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.files import locked_folder, missing, remove_unfinished, replace_file
from jaxcxr.models.compute import compiler_options
from jaxcxr.models.named import with_parameters
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import processes

PER_SHARD = 256
_VERSION = 1  # of what a shard holds; another one is computed anew
_THREADS = 8


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


def extract(images: ImageSet, chosen: Chosen, size: int, folder: Path, batch_size: int = 32) -> Extracted:
    """The features of all images of a set; each shard of them is computed once, by any process.

    Args:
      images: the set.
      chosen: extractor, weights and preprocessing.
      size: side in pixels that images are brought to first, padded to a square; 0 leaves them as they are.
      folder: where features are kept, under a digest of images, size, weights and preprocessing.
      batch_size: images at once, of all devices of a process together.

    Raises:
      UserError: the folder cannot be written, another job writes the same features, or no image can be read.
    """
    own = folder / _identity(images, chosen, size)
    files = [own / f"{number:05}.npz" for number in range(-(-len(images.items) // PER_SHARD))]
    if processes.from_first(lambda: missing(files)):  # one process decides, as file systems may tell each another thing
        with contextlib.ExitStack() as held:
            processes.on_first(lambda: _claim(own, held))
            _compute(images, chosen, size, files, batch_size)
            processes.on_first(lambda: None)  # the others are done too
    found = Extracted(*map(np.concatenate, zip(*map(_read, files), strict=True)))
    if not found.readable.any():
        raise UserError(f"{images.name}: none of its {len(images.items)} images can be read by {chosen.name}")
    return found


def _claim(folder: Path, held: contextlib.ExitStack) -> None:
    """Makes the folder this job's, alone until `held` is closed."""
    held.enter_context(locked_folder(folder, private=True))
    remove_unfinished(folder)


def _identity(images: ImageSet, chosen: Chosen, size: int) -> str:
    whole = [_VERSION, images.stamp, chosen.name, chosen.digest, size]
    return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()


def _compute(images: ImageSet, chosen: Chosen, size: int, files: Sequence[Path], batch_size: int) -> None:
    mine = processes.share_out(lambda: missing(files))
    network = Network(chosen, batch_size, meshes.own_mesh())
    read, total = functools.partial(_prepared, chosen, size), len(images.items)
    left = sum(min(PER_SHARD, total - shard * PER_SHARD) for shard in mine)
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(total=left, desc=f"{chosen.name} {images.name}", unit="img", disable=jax.process_index() > 0) as bar,
    ):
        for shard in mine:
            items = images.items[shard * PER_SHARD : (shard + 1) * PER_SHARD]
            prepared = threads.map(read, items)
            digests: list[bytes] = []

            def inputs(prepared: Any = prepared, digests: list[bytes] = digests) -> Iterator[np.ndarray | None]:
                for each, digest in prepared:
                    digests.append(digest)
                    bar.update()
                    yield each

            values = network.features(inputs())
            readable = np.array([digest != b"" for digest in digests])
            _write(files[shard], Extracted(values, readable, np.array(digests, "S16")))


def _prepared(chosen: Chosen, size: int, item: Item) -> tuple[np.ndarray | None, bytes]:
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


def _write(file: Path, shard: Extracted) -> None:
    data = io.BytesIO()
    np.savez(data, **shard._asdict())
    try:
        replace_file(file, data.getvalue(), private=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another --out") from error


def _read(file: Path) -> Extracted:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Extracted(**{name: arrays[name] for name in Extracted._fields})
    except Exception as error:  # NumPy and zipfile raise almost anything on damaged files
        raise UserError(f"{file}: is damaged ({type(error).__name__}); remove it and evaluate again") from error
