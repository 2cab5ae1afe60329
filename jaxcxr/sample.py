"""A sampling job: prompts to a folder of PNGs with a manifest, by one process or by several, each its share."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from jaxcxr import arrays, buckets
from jaxcxr.draw import Drawer, batches, to_image
from jaxcxr.errors import UserError
from jaxcxr.files import begun_at, begun_folder, move_up, remove_unfinished, writing_place
from jaxcxr.generate import default_size
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.manifest import NOTICE, Settings, file_name, remove_old_partials, whole_in, write_tables
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import processes
from jaxcxr.requests import MOST_SEED
from jaxcxr.rows import Rows

_LOOKED_AT = 10_000  # prompts, for how many are cut: a tokenizer takes minutes for millions


def sample(
    pipeline: StableDiffusion,
    prompts: Rows | Sequence[Mapping[str, Any]],
    settings: Settings,
    out: Path,
    batch_size: int = 16,
) -> None:
    """Draws a picture of each prompt into the new folder `out`, which appears when all are there.

    Each process of the job draws its share of the batches on its own devices. Whatever their number, a picture is the
    same. What an interrupted job of the same settings, prompts and weights has drawn is kept.

    Raises:
      UserError: the settings do not fit the checkpoint, its configs or the latents are damaged, or `out` exists or
        cannot be written.
      FloatingPointError: a picture is not finite, or blank; those of earlier batches are kept for the next run.
    """
    settings = dataclasses.replace(settings, size=default_size(pipeline) if settings.size is None else settings.size)
    _check(settings, batch_size)
    job = _Job(pipeline, Rows.of(prompts), settings, batch_size)
    processes.on_first(job.say_cut)
    started = time.perf_counter()
    with contextlib.ExitStack() as held:
        processes.on_first(lambda: job.begin(held, out))
        drawn = job.draw(begun_at(out))
        processes.on_first(lambda: None)  # the others are done too
        processes.on_first(lambda: job.finish(begun_at(out)))
    processes.on_first(lambda: None)  # `out` is there
    if jax.process_index() == 0:
        rate = drawn / (time.perf_counter() - started)
        others = f" in each of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        print(f"{out}: {len(job.rows)} images of {settings.steps} steps, {rate:.2f} images/s{others}")


class _Job:
    """What is drawn, and in which batches; these depend on neither the processes nor what is there already."""

    def __init__(self, pipeline: StableDiffusion, rows: Rows, settings: Settings, batch_size: int):
        """Raises UserError where rows, settings and checkpoint do not fit, or a file is damaged."""
        self.rows, self._pipeline, self._settings = rows, pipeline, settings
        mesh = meshes.own_mesh()
        self._drawer = Drawer(pipeline, settings, mesh)
        self._batch_size = -(-min(batch_size, len(rows)) // mesh.size) * mesh.size
        self._batches = batches(rows.each(self._drawer.kind), self._batch_size)
        file, shape = settings.latents, self._drawer.shape
        self._latents = None if file is None else _read_latents(Path(file), len(rows), shape)
        for where, request in rows.with_files():
            self._drawer.check_files(request, where)

    def say_cut(self) -> None:
        """Prints how many of the first prompts are longer than the text encoder takes."""
        some = [request for _, request in itertools.islice(self.rows, _LOOKED_AT)]
        if cut := self._drawer.count_cut(some):
            of = "" if len(some) == len(self.rows) else "the first "
            print(f"{cut} of {of}{len(some)} prompts are longer than the text encoder takes, and are cut")

    def begin(self, held: contextlib.ExitStack, out: Path) -> None:
        """Makes the folder that will be `out` this job's, without what interrupted processes were writing."""
        folder = held.enter_context(begun_folder(out, self._identity(), private=True))
        remove_unfinished(folder)
        if not buckets.holds(folder):
            remove_old_partials(folder)

    def draw(self, folder: Path) -> int:
        """Draws this process's share of what is missing, and returns how many pictures that was."""
        own = [self._batches[number] for number in processes.share_out(lambda: self._missing(folder))]
        count = sum(map(len, own))
        share = max(count, len(self.rows) // jax.process_count())
        hidden = jax.process_index() > 0
        with (
            writing_place(folder) as place,
            tqdm(total=share, initial=share - count, desc="sample", unit="img", disable=hidden) as bar,
        ):
            for numbers in own:
                pictures, rows = self._pictures(numbers)
                _require_pictures(pictures, numbers, self._settings)
                for number, picture, row in zip(numbers, pictures, rows, strict=True):
                    _write(place, folder, self._settings.row(number, row), picture, self._settings.gray)
                    bar.update()
        return count

    def finish(self, folder: Path) -> None:
        """Writes the tables, after a last look at the pictures."""
        remove_unfinished(folder, living=True)  # of processes of an earlier run too: all that they draw is here
        if missing := self._missing(folder):
            whole = whole_in(folder)
            lost = next(file_name(n) for n in self._batches[missing[0]] if not whole(file_name(n)))
            raise UserError(
                f"{folder}: has no {lost}, though all is drawn; all processes need the same --out and devices"
            )
        write_tables(folder, (self._settings.row(number, row) for number, (row, _) in enumerate(self.rows)))

    def _missing(self, folder: Path) -> list[int]:
        """The numbers of the batches of which a picture is not there."""
        whole = whole_in(folder)
        return [
            number for number, batch in enumerate(self._batches) if not all(whole(file_name(each)) for each in batch)
        ]

    def _pictures(self, batch: Sequence[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The pictures of these numbers, float32 (B, H, W, C), and their rows of the prompts."""
        rows, some = map(list, zip(*map(self.rows.__getitem__, batch), strict=True))
        # A short batch is filled up, so that one program serves all of its kind.
        filling = self._batch_size - len(batch)
        numbers = [*batch, *[batch[-1]] * filling]
        noise = None if self._latents is None else np.stack([self._latents[number] for number in numbers])
        places = [(self._settings.seed, number) for number in numbers]
        return self._drawer.draw([*some, *[some[-1]] * filling], places, noise)[: len(batch)], rows

    def _identity(self) -> str:
        """A digest of the job: of its rows, as prompts may be of patients, settings and weights, and of its files."""
        named = [self._settings.latents] if self._settings.latents else []
        names = itertools.chain(named, *(request.files() for _, request in self.rows.with_files()))
        stamps = [(name, (about := os.stat(name)).st_size, about.st_mtime_ns) for name in names]
        whole = [self.rows.digest, dataclasses.asdict(self._settings), stamps, _digest(self._pipeline)]
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=16).hexdigest()


def _digest(pipeline: StableDiffusion) -> str:
    """A digest of all weights, wherever they are from, and of the files that say how they are used.

    It takes a second for each few gigabytes.
    """
    values, whole = pipeline.parameters(), hashlib.blake2b(digest_size=16)

    def of(name: str) -> bytes:
        value = np.ascontiguousarray(values[name])
        return hashlib.blake2b(value.reshape(-1).view(np.uint8)).digest()

    with ThreadPoolExecutor() as pool:
        for name, digest in zip(sorted(values), pool.map(of, sorted(values)), strict=True):
            whole.update(name.encode() + digest)
    for name in sorted(name for name in pipeline.files if "/" in name):
        whole.update(name.encode() + hashlib.blake2b(pipeline.files[name]).digest())
    return whole.hexdigest()


def _check(settings: Settings, batch_size: int) -> None:
    for option, value, allowed, fits in (
        ("batch-size", batch_size, "1 or more", batch_size >= 1),
        ("seed", settings.seed, "from 0 to 2^32 - 1", 0 <= settings.seed <= MOST_SEED),
    ):
        if not fits:
            raise UserError(f"--{option} {value}: may be {allowed}")


def _require_pictures(pictures: np.ndarray, numbers: Sequence[int], settings: Settings) -> None:
    """Sees to it that pictures, float32 (B, H, W, C), of these numbers show something.

    Raises:
      FloatingPointError: one does not.
    """
    low, high = pictures.min((1, 2, 3)), pictures.max((1, 2, 3))  # NaN if there is one
    broken = np.flatnonzero(~(low < high))
    if not len(broken):
        return
    what = "has one gray level throughout" if np.isfinite(low[broken[0]]) else "is not finite"
    causes = [f"--dtype {settings.dtype}" if settings.dtype != "float32" else "", "weights that are too large"]
    causes += ["--latents" if settings.latents else "", f"--guidance {settings.guidance:g}"]
    raise FloatingPointError(
        f"prompt {numbers[broken[0]] + 1}: its picture {what} ({len(broken)} of {len(pictures)} in its batch);"
        f" likely causes: {', '.join(filter(None, causes))}; pictures before this batch are kept for the next run"
    )


def _write(place: Path, folder: Path, row: Mapping[str, Any], picture: np.ndarray, gray: bool) -> None:
    """Writes one picture, float32 (H, W, C) in [0, 1], with its manifest line in the PNG's metadata, then moves it up.

    `place` is that of `files.writing_place` for `folder`.
    """
    image = to_image(picture, gray)
    about = PngInfo()
    about.add_text("Description", NOTICE)
    about.add_itxt("jaxcxr", json.dumps(row))
    image.save(place / row["file_name"], pnginfo=about)
    move_up(place / row["file_name"], folder)


def _read_latents(file: Path, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The initial noise of `count` pictures, float32 (count, h, w, C), read from the disk when it is asked for.

    Raises:
      UserError: the file is not an array of N×C×H×W, or has a number that is not finite.
    """
    latents = arrays.read(file, [(count, shape[2], shape[0], shape[1])], "N×C×H×W", str(file))
    for index, each in enumerate(latents):
        if not np.isfinite(each).all():
            raise UserError(f"{file}: picture {index + 1} of {count} has NaN or infinity; draw the noise again")
    return latents.transpose(0, 2, 3, 1)
