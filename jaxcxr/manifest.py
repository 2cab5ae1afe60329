"""A sampling job's folder: its manifest, the metadata that make it an image folder, and the strip beside it."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxcxr import buckets, files, parsing, requests
from jaxcxr.draw import Options
from jaxcxr.errors import UserError, one_line
from jaxcxr.files import new_file, replace_file
from jaxcxr.requests import Request
from jaxcxr.rows import Rows

MANIFEST = "manifest.jsonl"
METADATA = "metadata.jsonl"  # by which the folder is an image folder for `prepare` and for Hugging Face's datasets
MOST_BYTES = 2**34  # of a manifest, which is read line by line
NOTICE = "Synthetic image made by a generative model. Not a patient, not for diagnosis."
_OLD_STRIP = "strip.png"  # in the folder, where older versions wrote it
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that is merged into the checkpoint, with its strength; `step` as `checkpoint_step`."""

    path: str
    weight: float
    step: int | None = None


# Not in older manifests, and in none where they are as usual.
_NEWER = {
    *("karras", "timestep_spacing", "guidance_rescale", "keep_outside", "colour"),
    *("adapters", "controlnet", "control_scale"),
}


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
    controlnet: Adapter | None = None

    def row(self, index: int, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's line for image `index`; further fields of a prompt are kept, and its own seed."""
        name = {"file_name": file_name(index)}  # also where the prompts are an earlier manifest, or of a folder
        said = {**self._said, **({"seed": prompt["seed"]} if prompt.get("seed") is not None else {})}
        return {**name, **prompt, **name, **said, "index": index, "synthetic": True}

    @functools.cached_property
    def _said(self) -> dict[str, Any]:
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name in _NEWER}
        return {key: value for key, value in dataclasses.asdict(self).items() if usual.get(key, _NEWER) != value}

    def already_done(self, out: Path, prompts: Rows | Sequence[Mapping[str, Any]]) -> bool:
        """Whether `out` is a finished job of these settings, `size` known, and prompts.

        Raises:
          UserError: it is a finished job of others, or its manifest is damaged.
        """
        if not (files.is_whole(out) and (out / MANIFEST).is_file()):
            return False
        lost, moved, step, whole = "", "", "checkpoint_step", whole_in(out)
        wanted = (self.row(index, prompt) for index, (prompt, _) in enumerate(Rows.of(prompts)))
        pairs: Iterable[tuple[dict[str, Any], ...]] = itertools.zip_longest(read_manifest(out), wanted, fillvalue={})
        for row, drawn in pairs:
            want = json.loads(json.dumps(drawn))
            if "size" in row and row["size"] is None:  # of an older version: any size may be it
                want = {**want, "size": None}
            if {**row, step: None} != {**want, step: None} or not isinstance(row.get(step), int | None):
                was, now = (str(each.get("checkpoint")) for each in (row, want))
                other = f" ({one_line(was)}, not {now})" if was != now else ""
                raise UserError(f"{out}: holds samples of other prompts or settings{other}; name another --out")
            if row != want:
                moved = f"of step {row.get(step)} of {row['checkpoint']}, which is at {want[step]}"
            elif not lost and not whole(row["file_name"]):
                lost = row["file_name"]
        if moved:
            raise UserError(f"{out}: holds samples {moved}; name another --out")
        if lost:
            raise UserError(
                f"{out}: {lost} was drawn, but is missing or damaged; remove the folder or name another --out"
            )
        return True


def file_name(index: int) -> str:
    """The name of picture number `index`."""
    return f"{index:05d}.png"


def is_whole(file: str | Path) -> bool:
    """Whether there is a PNG, to its end."""
    try:
        with open(file, "rb") as stream:
            begin = stream.read(8)
            stream.seek(-len(_PNG_END), os.SEEK_END)
            return begin == _PNG_BEGIN and stream.read() == _PNG_END
    except OSError:
        return False


def whole_in(folder: Path) -> Callable[[str], bool]:
    """Says of the name of a PNG whether it is whole in a folder: in a bucket those are that are there now."""
    if buckets.holds(folder):
        there = buckets.sizes(folder)
        return lambda name: name in there
    return lambda name: is_whole(f"{folder}/{name}")


def read_manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished job; raises UserError where the manifest is damaged."""
    rows: Iterable[dict[str, Any]] = parsing.read_lines(
        folder / MANIFEST, dict, remedy="name another --out", most=MOST_BYTES
    )
    yield from rows


def write_tables(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the rows of a manifest, and of each what an image folder has of it."""
    with contextlib.ExitStack() as opened:
        metadata, manifest = (
            opened.enter_context(opened.enter_context(buckets.written(folder / name)).open("w"))
            for name in (METADATA, MANIFEST)
        )
        for row in rows:
            metadata.write(f"{json.dumps(_metadata(row))}\n")
            manifest.write(f"{json.dumps(row)}\n")


def bring_up_to_date(out: Path) -> None:
    """Adds what an older version did not write to a finished folder, and takes out what it left there.

    A folder that cannot be written stays as it is.
    """
    if buckets.holds(out):
        return  # older versions wrote to none
    with contextlib.suppress(OSError):
        if (out / _OLD_STRIP).is_file() and not strip_of(out).exists():
            (out / _OLD_STRIP).replace(strip_of(out))
        remove_old_partials(out)
        if not (out / METADATA).is_file():
            with new_file(out / METADATA) as partial, partial.open("w") as metadata:
                metadata.writelines(f"{json.dumps(_metadata(row))}\n" for row in read_manifest(out))


def remove_old_partials(folder: Path) -> None:
    """Removes the pictures that older versions were writing when they were interrupted."""
    for left in folder.glob(".next*.png"):
        left.unlink(missing_ok=True)


def strip_of(out: Path) -> Path:
    """Where the strip of a job is: beside its folder, in which every picture has a row of the metadata."""
    return out.with_name(f"{out.name}.strip.png")


def write_strip(out: Path) -> None:
    """Writes the pictures of a finished job side by side, in the manifest's order."""
    pictures = []
    for row in read_manifest(out):
        with (out / row["file_name"]).open("rb") as file, Image.open(file) as picture:
            pictures.append(np.asarray(picture))
    about = PngInfo()
    about.add_text("Description", NOTICE)
    strip = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(strip, "PNG", pnginfo=about)
    replace_file(strip_of(out), strip.getvalue(), private=True)


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an image folder has of a manifest's row: the text and the labels that came with a prompt.

    Where embeddings stand for the prompt, the text is a label too.
    """
    hidden = {*Request.__dataclass_fields__, *Settings.__dataclass_fields__, "index"}
    text = {"file_name": row["file_name"], "text": requests.parse(row, "row").text or str(row.get("text", ""))}
    return text | {key: value for key, value in row.items() if key not in hidden and key not in text}
