"""Which files of a repository of the hub the readers of checkpoints open: functions that `hub.find` takes.

They know names alone, so that nothing else is downloaded: no second precision, no pickles beside safetensors, nothing
for other frameworks, no safety checker, no sample images.
"""

import re
from collections.abc import Iterable, Sequence

from jaxcxr.data import tokens
from jaxcxr.hub import Absent, Choose
from jaxcxr.interop.adapter_files import FILE
from jaxcxr.interop.config_files import PUBLISHED
from jaxcxr.interop.diffusers import WEIGHTS
from jaxcxr.interop.flax_legacy import WEIGHTS as FLAX_WEIGHTS
from jaxcxr.interop.folder import CARRIED, OWN, weight_files
from jaxcxr.interop.refused import FOLDERS

_OF_A_RUN = ("model", "checkpoints", "frozen")
_ALONE = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # of transformers, of diffusers
_HOLDS_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def of_checkpoint(only: Iterable[str] | None = None, *, weights: bool = True) -> Choose:
    """Chooses the files of a checkpoint.

    Args:
      only: the networks wanted; all that are there if None.
      weights: of them too, not their configs and tokenizers alone.
    """
    networks = tuple(PUBLISHED if only is None else (name for name in PUBLISHED if name in set(only)))

    def choose(files: Sequence[str]) -> list[str]:
        there = set(files)
        if run := _of_a_run(files):
            return run
        parts = {part: names for part, names in (CARRIED | OWN).items() if part}
        carried = [f"{part}/{name}" for part, names in parts.items() for name in names if f"{part}/{name}" in there]
        index = [name for name in CARRIED[""] if name in there]
        if index or any(f"{name}/config.json" in there for name in PUBLISHED):
            if other := [part for part in FOLDERS if any(file.startswith(f"{part}/") for file in files)]:
                raise Absent(
                    f"has {other[0]}/, which is no part of Stable Diffusion 1 or 2, whose pipelines alone are read"
                )
            found = [name for name in networks if f"{name}/config.json" in there]
            return [*index, *carried, *(_weights_of(found, there) if weights else [])]
        if "config.json" in there:  # a network alone
            own = ["config.json", *(name for name in tokens.FILES if name in there)]
            return [*own, *(_first(there, "", _ALONE) if weights else [])]
        raise _none("holds no folder of a checkpoint", files)

    return choose


def of_adapter(files: Sequence[str]) -> list[str]:
    """Chooses the files of a LoRA's folder, or of a workdir."""
    if run := _of_a_run(files):
        return run
    if FILE in files:
        return [FILE]
    raise _none(f"holds no {FILE}", files)


def of_weights(*names: str) -> Choose:
    """Chooses the weights of a network that measures images, or embeds texts, with what says how: config, tokenizer.

    Args:
      names: files that are read besides, where they are there.
    """

    def choose(files: Sequence[str]) -> list[str]:
        there = set(files)
        weights = [next((name for name in ("model.safetensors", "pytorch_model.bin") if name in there), "")]
        found = [name for name in (*weights, *names) if name in there]
        if not found:
            raise _none("holds neither model.safetensors nor pytorch_model.bin", files)
        return [*found, *(name for name in ("config.json", *tokens.FILES) if name in there)]

    return choose


def _of_a_run(files: Sequence[str]) -> list[str]:
    """All files of a workdir or an Orbax folder; none if it is of another kind."""
    tops = {file.split("/")[0] for file in files}
    if not {"model", "checkpoints"} <= tops:
        return []
    return [file for file in files if "/" not in file or file.split("/")[0] in _OF_A_RUN]


def _weights_of(networks: Sequence[str], there: set[str]) -> list[str]:
    """The weights of the networks of a pipeline: PyTorch's where there are any, as the readers prefer them."""
    found = {name: _first(there, f"{name}/", (WEIGHTS[name],), require=False) for name in networks}
    if not any(found.values()):
        flax = [f"{name}/{FLAX_WEIGHTS[name]}" for name in networks if name in FLAX_WEIGHTS]
        if flax := [file for file in flax if file in there]:
            return flax
    if lacks := [name for name, files in found.items() if not files]:
        raise Absent(f"has no {lacks[0]}/{WEIGHTS[lacks[0]]}, and no other file of the weights that is read")
    return [file for files in found.values() for file in files]


def _first(there: set[str], prefix: str, names: Sequence[str], *, require: bool = True) -> list[str]:
    """The first that there is of the files that weights may be in; with its shards, if it is an index of them."""
    for each in (each for name in names for each in weight_files(name)):
        if f"{prefix}{each.name}" in there:
            pattern = re.escape(prefix) + each.shards
            shards = [file for file in sorted(there) if re.fullmatch(pattern, file)] if each.is_index else []
            return [f"{prefix}{each.name}", *shards]
    if require:
        raise Absent(f"has no {prefix}{names[0]}, and no other file of the weights that is read")
    return []


def _none(what: str, files: Sequence[str]) -> Absent:
    """The error for a repository that has files of weights alone: one of them has to be named."""
    alone = [file for file in files if file.endswith(_HOLDS_WEIGHTS) and "/" not in file]
    if not alone:
        return Absent(what)
    listed = ", ".join(alone[:6]) + (" …" if len(alone) > 6 else "")
    return Absent(f"{what}; name one of its files, {listed}: append :{alone[0]}")
