"""Which files of a checkpoint's folder are read: known names, of bounded size, that do not link out of the folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcxr import buckets, parsing
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.files import hub_blobs

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


class WeightFile(NamedTuple):
    """A file that a network's weights may be in.

    Attributes:
      name: of the file.
      suffix: of the files with tensors: safetensors, or bin for PyTorch's pickles.
      is_index: whether it names the files that have the tensors, and has none itself.
      shards: a regular expression of their names.
    """

    name: str
    suffix: str
    is_index: bool
    shards: str


def weight_files(name: str) -> list[WeightFile]:
    """The files that a network's weights may be in, in the order in which they are taken.

    Whole precision goes before half, safetensors before PyTorch's pickles, one file before shards.

    Args:
      name: of the first: `model.safetensors`, as transformers has it, or `diffusion_pytorch_model.safetensors`.
    """
    stem = name.removesuffix(".safetensors")
    pickle = "pytorch_model" if stem == "model" else stem
    found = []
    for kind, suffix in ((stem, "safetensors"), (pickle, "bin")):
        for variant in ("", ".fp16"):
            fp16, number = re.escape(variant), r"-\d+-of-\d+"
            shards = rf"{kind}({fp16}{number}|{number}{fp16})\.{suffix}"
            found += [
                WeightFile(f"{kind}{variant}.{suffix}", suffix, False, ""),
                WeightFile(f"{kind}.{suffix}.index{variant}.json", suffix, True, shards),
            ]
    return found


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
        allowed = [root.resolve(), *hub_blobs(root)]
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that lead to themselves
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UserError(f"{file}: links out of the checkpoint's folder and is not followed; put the file itself there")
    return True
