"""A sampling job: prompts to a folder of PNGs with a manifest, by one process or by several, each its share."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from jaxcxr import parsing, requests
from jaxcxr.draw import Drawer, Options, to_image
from jaxcxr.errors import UserError, one_line
from jaxcxr.files import begun_at, begun_folder, replace_file
from jaxcxr.generate import default_size
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import processes
from jaxcxr.requests import MOST_SEED, Request

MANIFEST, STRIP = "manifest.jsonl", "strip.png"
METADATA = "metadata.jsonl"  # by which the folder is an image folder for `prepare` and for Hugging Face's datasets
MOST_BYTES = 2**30  # of a manifest or of prompts; all reports of MIMIC-CXR have a tenth of it
_NEXT = ".next-"  # before the name of a picture that is being written
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NOTICE = "Synthetic image made by a generative model. Not a patient, not for diagnosis."


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that is merged into the checkpoint, with its strength; `step` as `checkpoint_step`."""

    path: str
    weight: float
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """What decides the images, besides the prompts; fields as the options of `jaxcxr sample`.

    `checkpoint_step` is how far a workdir was trained, None for a folder that does not say. `size` is None until it is
    known what the U-Net was trained for; manifests of older versions have it so.
    """

    checkpoint: str
    checkpoint_step: int | None = None
    weights: str = "ema"
    seed: int = 0
    dtype: str = "float32"
    latents: str | None = None
    gray: bool = False
    adapters: tuple[Adapter, ...] = ()

    def already_done(self, out: Path, prompts: Sequence[Mapping[str, Any]]) -> bool:
        """Whether `out` is a finished job of these settings, `size` known, and prompts.

        Raises:
          UserError: it is a finished job of others, or its manifest is damaged.
        """
        if not (out / MANIFEST).is_file():
            return False
        rows: list[dict[str, Any]] = list(
            parsing.read_lines(out / MANIFEST, dict, remedy="name another --out", most=MOST_BYTES)
        )
        wanted = [json.loads(json.dumps(self.row(index, prompt))) for index, prompt in enumerate(prompts)]
        if any("size" in row and row["size"] is None for row in rows):  # of an older version: any size may be it
            wanted = [{**row, "size": None} for row in wanted]
        if rows != wanted:
            raise UserError(f"{out}: holds samples {_differ(rows, wanted)}; name another --out")
        if not _all_there(out, rows):
            lost = next(row["file_name"] for row in rows if not _is_whole(out / row["file_name"]))
            raise UserError(
                f"{out}: {lost} was drawn, but is missing or damaged; remove the folder or name another --out"
            )
        return True

    def row(self, index: int, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's line for image `index`; further fields of a prompt are kept, and its own seed."""
        name = {"file_name": f"{index:05d}.png"}  # also where the prompts are an earlier manifest, or of a folder
        said = dataclasses.asdict(self)
        for key in (
            "karras",
            "timestep_spacing",
            "guidance_rescale",
            "keep_outside",
            "adapters",
        ):  # not in older manifests
            if not said[key]:
                del said[key]
        if prompt.get("seed") is not None:
            said["seed"] = prompt["seed"]
        return {**name, **prompt, **name, **said, "index": index, "synthetic": True}


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """Reads prompts: a text file with one a line, or JSON lines with the fields of `requests.Request`.

    A line ends at a line feed, with or without a carriage return before it, and at nothing else. The lines of an
    earlier manifest are drawn with the seed of the new job.

    Raises:
      UserError: the file cannot be read, has no prompt, or a line of it is not as it should be.
    """
    if file.suffix == ".jsonl":
        remedy = 'each line is a JSON object with a `prompt` string, such as {"prompt": "No acute process."}'
        prompts: list[dict[str, Any]] = list(parsing.read_lines(file, dict, remedy=remedy, most=MOST_BYTES))
        for number, row in enumerate(prompts, 1):
            requests.parse(row, f"{file}: line {number}")
            if row.get("synthetic") is True:
                row.pop("seed", None)
    else:
        try:
            text = parsing.read_bytes(file, MOST_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: is not UTF-8; give a UTF-8 text file of prompts") from error
        prompts = [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{file}: has no prompts")
    return prompts


def sample(
    pipeline: StableDiffusion,
    prompts: Sequence[Mapping[str, Any]],
    settings: Settings,
    out: Path,
    batch_size: int = 16,
) -> None:
    """Draws a picture of each prompt into the new folder `out`, which appears when all are there.

    Each process of the job draws its share of the batches on its own devices. Whatever their number, a picture is the
    same. What an interrupted job of the same settings and prompts has drawn is kept.

    Raises:
      UserError: the settings do not fit the checkpoint, its configs or the latents are damaged, or `out` exists or
        cannot be written.
      FloatingPointError: a picture is not finite, or blank; those of earlier batches are kept for the next run.
    """
    settings = dataclasses.replace(settings, size=default_size(pipeline) if settings.size is None else settings.size)
    _check(settings, batch_size)
    pairs = list(requests.expanded(prompts))
    prompts, asked = [row for row, _ in pairs], [request for _, request in pairs]
    mesh = meshes.own_mesh()
    drawer = Drawer(pipeline, settings, mesh)
    batch_size = -(-min(batch_size, len(prompts)) // mesh.size) * mesh.size
    batches = drawer.batches(asked, batch_size)
    latents = None if settings.latents is None else _read_latents(Path(settings.latents), len(prompts), drawer.shape)
    for number, request in enumerate(asked, 1):
        requests.check_files(request, f"prompt {number}")
    first = jax.process_index() == 0
    if first and (cut := drawer.count_cut(asked)):
        print(f"{cut} of {len(asked)} prompts are longer than the text encoder takes, and are cut")
    rows = [settings.row(index, prompt) for index, prompt in enumerate(prompts)]

    def draw(batch: Sequence[int]) -> np.ndarray:
        """The pictures of these numbers."""
        # A short batch is filled up, so that one program serves all of its kind.
        numbers = [*batch, *[batch[-1]] * (batch_size - len(batch))]
        noise = None if latents is None else np.stack([latents[number] for number in numbers])
        return drawer.draw(
            [asked[number] for number in numbers], [(settings.seed, number) for number in numbers], noise
        )

    started, identity = time.perf_counter(), _identity(rows, settings, asked)
    with contextlib.ExitStack() as held:
        processes.on_first(lambda: _begin(held, out, identity))
        folder = begun_at(out)
        own = batches[jax.process_index() :: jax.process_count()]
        missing = [batch for batch in own if not _all_there(folder, [rows[number] for number in batch])]
        share, count = sum(map(len, own)), sum(map(len, missing))
        with tqdm(total=share, initial=share - count, desc="sample", unit="img", disable=not first) as bar:
            for batch in missing:
                pictures = draw(batch)[: len(batch)]
                _require_pictures(pictures, batch, settings)
                for number, picture in zip(batch, pictures, strict=True):
                    _write(folder, rows[number], picture, settings.gray)
                    bar.update()
        processes.on_first(lambda: None)  # the others are done too
        if first:
            _require_all(folder, rows)
            _write_tables(folder, rows, asked)
    processes.on_first(lambda: None)  # `out` is there
    if first:
        rate = count / (time.perf_counter() - started)
        others = f" in each of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        print(f"{out}: {len(prompts)} images of {settings.steps} steps, {rate:.2f} images/s{others}")


def _begin(held: contextlib.ExitStack, out: Path, identity: str) -> None:
    """Makes the folder that will be `out` this job's, without the picture that an interrupted process was writing."""
    for left in held.enter_context(begun_folder(out, identity, private=True)).glob(f"{_NEXT}*"):
        left.unlink()


def _require_all(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where a picture of another process is not here."""
    if lost := next((row["file_name"] for row in rows if not _is_whole(folder / row["file_name"])), None):
        raise UserError(f"{folder}: has no {lost}, though all is drawn; all processes need the same --out and devices")


def _write_tables(folder: Path, rows: Sequence[Mapping[str, Any]], asked: Sequence[Request]) -> None:
    """Writes the manifest, and of it what an image folder has: the text and the labels that came with a prompt."""
    hidden = {*Request.__dataclass_fields__, *Settings.__dataclass_fields__, "index"}
    with (folder / METADATA).open("w") as file:
        for row, request in zip(rows, asked, strict=True):
            text = {"file_name": row["file_name"], "text": request.text}
            labels = {key: value for key, value in row.items() if key not in hidden and key not in text}
            file.write(f"{json.dumps(text | labels)}\n")
    (folder / MANIFEST).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_strip(folder: Path) -> None:
    """Writes the pictures of a finished job side by side, in the manifest's order."""
    rows: Iterable[dict[str, Any]] = parsing.read_lines(folder / MANIFEST, dict, most=MOST_BYTES)
    pictures = []
    for row in rows:
        with Image.open(folder / row["file_name"]) as picture:
            pictures.append(np.asarray(picture))
    about = PngInfo()
    about.add_text("Description", NOTICE)
    strip = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(strip, "PNG", pnginfo=about)
    replace_file(folder / STRIP, strip.getvalue())


def _differ(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> str:
    step = "checkpoint_step"
    same = [{**row, step: None} for row in rows] == [{**row, step: None} for row in wanted]
    if not same or not isinstance(rows[0].get(step), int | None):
        return "of other prompts or settings"
    return f"of step {rows[0].get(step)} of {rows[0]['checkpoint']}, which is at {wanted[0][step]}"


def _check(settings: Settings, batch_size: int) -> None:
    for option, value, allowed, fits in (
        ("batch-size", batch_size, "1 or more", batch_size >= 1),
        ("seed", settings.seed, "from 0 to 2^32 - 1", 0 <= settings.seed <= MOST_SEED),
    ):
        if not fits:
            raise UserError(f"--{option} {value}: may be {allowed}")


def _identity(rows: Sequence[Mapping[str, Any]], settings: Settings, asked: Sequence[Request]) -> str:
    """A digest of a job: of its rows, as prompts may be of patients, and of the sizes and times of its files."""
    named = [Path(name) for name in (settings.checkpoint, settings.latents) if name]
    if settings.checkpoint_step is not None:  # of a workdir, whose steps are known apart
        named = named[1:]
    named += [Path(each.path) for each in settings.adapters if each.step is None]
    named += map(Path, sorted({name for request in asked for name in request.files()}))
    files = [file for path in named for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.blake2b(json.dumps([rows, stamps]).encode(), digest_size=16).hexdigest()


def _all_there(folder: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the pictures of these rows are there, each a PNG to its end."""
    return all(_is_whole(folder / row["file_name"]) for row in rows)


def _is_whole(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            begin = stream.read(8)
            stream.seek(-len(_PNG_END), os.SEEK_END)
            return begin == _PNG_BEGIN and stream.read() == _PNG_END
    except OSError:
        return False


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


def _write(folder: Path, row: Mapping[str, Any], picture: np.ndarray, gray: bool) -> None:
    """Writes one picture, float32 (H, W, C) in [0, 1], with its manifest line in the PNG's metadata; whole or not."""
    image = to_image(picture, gray)
    about = PngInfo()
    about.add_text("Description", NOTICE)
    about.add_itxt("jaxcxr", json.dumps(row))
    partial = folder / f"{_NEXT}{row['file_name']}"
    image.save(partial, pnginfo=about)
    partial.replace(folder / row["file_name"])


def _read_latents(file: Path, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The initial noise of `count` pictures, float32 (count, h, w, C), read from the disk when it is asked for.

    Raises:
      UserError: the file is not an array of N×C×H×W, or has a number that is not finite.
    """
    wanted = (count, shape[2], shape[0], shape[1])
    try:
        with file.open("rb") as opened:
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            found, fortran, dtype = readers[np.lib.format.read_magic(opened)](opened)
            # Before there is an array: a header may claim any size, and numpy divides by that of an element.
            if dtype != np.float32 or found != wanted:
                said = f"{dtype} {found}"[:200]
                raise UserError(f"{file}: is {said}; float32 {wanted} (N×C×H×W) is wanted here")
            # Mapped, so that no more is read than is drawn.
            latents = np.memmap(file, dtype, "r", opened.tell(), wanted, "F" if fortran else "C")
    except UserError:
        raise
    except Exception as error:  # numpy's reader of headers raises almost anything on damaged ones
        said = one_line(error)
        raise UserError(f"{file}: cannot be read as .npy ({said}); write it with numpy.save") from error
    for index, each in enumerate(latents):
        if not np.isfinite(each).all():
            raise UserError(f"{file}: picture {index + 1} of {count} has NaN or infinity; draw the noise again")
    return latents.transpose(0, 2, 3, 1)
