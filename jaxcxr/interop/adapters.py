"""Published adapters, LoRA and DoRA, in and out: files (`adapter_files.py`) and the workdirs of runs.

An adapter is read for a base, whose layers give the names to look up, and merged into it lazily.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcxr import hub, parsing
from jaxcxr.adaptation import ADAPTATION, lora, settings_in, textual_inversion
from jaxcxr.errors import UserError
from jaxcxr.interop import adapter_files, embeddings, orbax, wanted
from jaxcxr.interop.adapter_files import FILE, Layer
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.folder import has_file
from jaxcxr.interop.tensors import Tensor, Tensors


def merged(
    checkpoint: Checkpoint, paths: Sequence[str | Path], weights: Sequence[float], *, ema: bool = True
) -> Checkpoint:
    """A base with adapters and new words in it, one after the other; kernels are merged when they are read.

    With a magnitude, another weight than 1 changes V alone, as in diffusers' `set_adapters`. An adapter after one with
    magnitudes is added to what that has made, as in diffusers' `fuse_lora`.

    Args:
      checkpoint: the base.
      paths: of adapters: a .safetensors file, a folder with `adapter_files.FILE`, or the workdir of a run; or of a
        textual inversion: a file that `embeddings.read` reads, or a workdir. Or names of repositories of the hub.
      weights: their strengths, in the same order; 1 for those that are left out, and for new words.
      ema: take the averaged weights of a workdir.

    Raises:
      UserError: there are more weights than adapters, a weight is not finite, a path is no adapter that is read, or
        one does not fit the base.
    """
    for named, weight in pairs(paths, weights):
        path = hub.find(named, wanted.of_adapter)
        words = _words(path, ema)
        if words:
            if weight != 1:
                raise UserError(
                    f"--adapter-weight {weight}: {path} is of new words, which have no strength; leave it 1"
                )
            checkpoint = embeddings.with_embeddings(checkpoint, words)
        if not words or (orbax.is_orbax(path) and "lora" in orbax.adaptation_of(path)):
            tensors = dict(checkpoint.tensors)
            for layer, adapter in read(path, tensors, ema=ema).items():
                tensors[f"{layer}.kernel"] = _merging(tensors[f"{layer}.kernel"], adapter, weight)
            checkpoint = Checkpoint(checkpoint.files, tensors)
    return checkpoint


def _words(path: Path, ema: bool) -> dict[str, np.ndarray]:
    """The vectors of the words that a file or a workdir has learnt; none if it is of something else."""
    if not orbax.is_orbax(path):
        return embeddings.read(path) if embeddings.is_embedding(path) else {}
    words = words_learnt(path)
    return embeddings.of(orbax.read(path, only=("text_encoder",), ema=ema), words) if words else {}


def words_learnt(path: Path) -> list[str]:
    """The words that a run has learnt; none where `path` is no workdir of one that learnt words.

    Raises:
      UserError: what the workdir says of them is damaged.
    """
    learnt = orbax.adaptation_of(path).get("textual_inversion")
    return [] if learnt is None else [word.text for word in textual_inversion.settings_of(learnt).words]


def pairs(paths: Sequence[str | Path], weights: Sequence[float]) -> list[tuple[Path, float]]:
    """Adapters with their weights, 1 for those that have none.

    Raises:
      UserError: there are more weights than adapters, or one is not finite.
    """
    if len(weights) > len(paths):
        raise UserError(
            f"--adapter-weight {weights[len(paths)]}: is weight {len(paths) + 1} of {len(paths)} adapters;"
            " give an --adapter for each"
        )
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise UserError(f"--adapter-weight {wrong[0]}: may be a finite number; 1 is the strength it was trained with")
    return [(Path(path), float(weight)) for path, weight in zip(paths, [*weights, *[1.0] * len(paths)], strict=False)]


def read(path: Path, base: Tensors, *, ema: bool = True) -> dict[str, Layer]:
    """Opens an adapter of any kind; its tensors are read when asked for.

    Args:
      path: as for `merged`.
      base: the parameters of what it is for, by full name.
      ema: take the averaged weights of a workdir.

    Raises:
      UserError: nothing that is read, or a layer or a shape that the base does not have.
    """
    if orbax.is_orbax(path):
        adapter = of_workdir(path, ema=ema)
        for layer, each in adapter.items():
            adapter_files.check_shapes(path, layer, each, base, {part: f"{part} of {layer}" for part in "AB"})
        return adapter
    return adapter_files.read(_file(path), base)


def of_workdir(path: Path, *, ema: bool = True) -> dict[str, Layer]:
    """The adapter that a run has learnt, if that is all it has but for new words.

    Raises:
      UserError: it learnt none, or something else besides.
    """
    if not orbax.is_orbax(path):
        raise UserError(f"{path}: is no workdir; name that of a run that learnt an adapter")
    files, learnt = orbax.read_learnt(path, ema=ema)
    parts = settings_in(files)
    if "lora" not in parts:
        raise UserError(f"{path}: has learnt no adapter; config.lora.rank is 0 there")
    if rest := sorted(name for name in learnt if not (lora.owns(name) or textual_inversion.owns(name))):
        raise UserError(
            f"{path}: has learnt {rest[0]} too, which an adapter cannot hold; convert it --to diffusers, merged"
        )
    chosen: lora.Settings = parsing.convert(parts["lora"], lora.Settings, f"{ADAPTATION}: lora")
    layers = [name.removesuffix(".lora_A.kernel") for name in learnt if name.endswith(".lora_A.kernel")]
    return {
        layer: Layer(
            learnt[f"{layer}.lora_A.kernel"],
            learnt[f"{layer}.lora_B.kernel"],
            chosen.scale,
            learnt.get(f"{layer}.{lora.MAGNITUDE}"),
        )
        for layer in layers
    }


def _file(path: Path) -> Path:
    """The file of an adapter that is one or lies in a folder."""
    if path.is_dir():
        if not has_file(path / FILE, path):
            raise UserError(f"{path}: holds no {FILE} and is no workdir; name the adapter's .safetensors file")
        return path / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; an adapter is a .safetensors file, a folder or a workdir")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: adapters are read from .safetensors alone; save it as that")
    return path


def _merging(kernel: Tensor, adapter: Layer, weight: float) -> Tensor:
    """A kernel that is merged when it is read."""

    def read() -> np.ndarray:
        a, b, w = (np.asarray(each.read(), np.float32) for each in (adapter.a, adapter.b, kernel))
        magnitude = None if adapter.magnitude is None else np.asarray(adapter.magnitude.read(), np.float32)
        return np.asarray(lora.adapted(w, a, b, adapter.scale * weight, magnitude), kernel.dtype)

    return Tensor(kernel.shape, kernel.dtype, read)
