"""Which files of a checkpoint's folder are read: known names, of bounded size, that do not link out of the folder."""

from collections.abc import Mapping
from pathlib import Path

from jaxcxr import buckets, parsing
from jaxcxr.data import tokens
from jaxcxr.errors import UserError

_CONFIG_BYTES = 4 * 2**20  # of a config.json; a long list of betas has a tenth of that

CARRIED: dict[str, tuple[str, ...]] = {
    "": ("model_index.json",),
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": tokens.FILES,
    "scheduler": ("scheduler_config.json",),
    "controlnet": ("config.json",),
}
"""The files of a diffusers folder that are read and carried, besides weights, by subfolder; nothing else is opened."""

OWN: dict[str, tuple[str, ...]] = {"classifier": ("config.json",)}
"""What a checkpoint of this package may have besides: a network that is no part of a diffusers pipeline."""

OF_A_RUN: dict[str, tuple[str, ...]] = {
    **OWN,
    "teacher": ("config.json",),
    "teacher_tokenizer": tokens.FILES,
    "lpips": ("config.json",),
    "discriminator": ("config.json",),
}
"""What the `model/` of a workdir may have besides."""


def read_carried(path: Path, carried: Mapping[str, tuple[str, ...]] = CARRIED) -> dict[str, bytes]:
    """The files of `carried` that the folder `path` has, by their path in it.

    Raises:
      UserError: one cannot be read, is too large or links out of the folder.
    """
    files = {}
    for part, names in carried.items():
        for name in names:
            if has_file(file := path / part / name, path):
                most = parsing.MOST_BYTES if part.endswith("tokenizer") else _CONFIG_BYTES
                files[file.relative_to(path).as_posix()] = parsing.read_bytes(file, most)
    return files


def has_file(file: Path, root: Path) -> bool:
    """Whether `file`, of the checkpoint in the folder `root`, is there to be read: a regular file or a link to one.

    A link may lead to a file within `root` or, in a cache of the Hugging Face hub, to the cache's `blobs`.

    Raises:
      UserError: it leads elsewhere.
    """
    try:
        if not file.is_file():
            return False
        if buckets.holds(file):  # which has no links
            return True
        target = file.resolve(strict=True)
        allowed = [root.resolve(), *_blobs(root)]
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that lead to themselves
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UserError(f"{file}: links out of the checkpoint's folder and is not followed; put the file itself there")
    return True


def _blobs(root: Path) -> list[Path]:
    """Where a snapshot of the hub's cache, `…/snapshots/REVISION`, keeps its files: `…/blobs`."""
    for folder in (root.absolute(), *root.absolute().parents):
        if folder.name == "snapshots" and (blobs := folder.with_name("blobs")).is_dir():
            return [blobs.resolve()]
    return []
