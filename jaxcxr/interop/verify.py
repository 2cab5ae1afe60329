"""Is what was written what was read? Every tensor is compared, and PyTorch asked where it is installed."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.tensors import Tensor


def compare(source: Checkpoint, path: Path, *, config: Path | None = None) -> Iterator[str]:
    """Yields a line a network on how far the checkpoint at `path` is from `source`.

    Names and shapes must agree; values may differ by what a cast to another dtype costs. A diffusers folder is also
    loaded with diffusers and transformers, where they and PyTorch are installed, and their parameters compared.

    Raises:
      UserError: a tensor is missing, left over, of another shape or not finite in one of the two alone.
    """
    from jaxcxr import interop

    written = interop.read(path, config=config, prediction_type="epsilon")
    for network in source.networks:
        ours, theirs = source.under(network), written.under(network)
        if ours.keys() != theirs.keys():
            raise UserError(f"{path}: {network} has other tensors than its source: {min(ours.keys() ^ theirs.keys())}")
        worst, digest = 0.0, hashlib.sha256()
        for name in sorted(ours):
            worst = max(worst, _difference(ours[name], theirs[name], f"{path}: {network}.{name}"))
            digest.update(np.ascontiguousarray(theirs[name].read()).reshape(-1).view(np.uint8).data)
        dtypes = "/".join(sorted({str(tensor.dtype) for tensor in theirs.values()}))
        yield (
            f"{network}: {len(theirs)} tensors, {dtypes}, largest difference {worst:.3g},"
            f" sha256 {digest.hexdigest()[:16]}"
        )
    if (path / "model_index.json").is_file() and all(map(importlib.util.find_spec, ("torch", "diffusers"))):
        yield from _ask_pytorch(written, path)


def _difference(ours: Tensor, theirs: Tensor, name: str) -> float:
    if ours.shape != theirs.shape:
        raise UserError(f"{name}: has shape {theirs.shape}, its source {ours.shape}")
    if not ours.nbytes:
        return 0.0
    difference = np.abs(ours.read().astype(np.float64) - theirs.read().astype(np.float64)).max()
    if not np.isfinite(difference):
        raise UserError(f"{name}: holds values that are not finite; this dtype cannot hold them, or the source does")
    return float(difference)


def _ask_pytorch(written: Checkpoint, path: Path) -> Iterator[str]:
    """Loads each network with the library that owns its class and compares parameter by parameter."""
    import json

    import diffusers
    import transformers

    from jaxcxr.interop.layout import to_torch

    index = json.loads(written.files["model_index.json"])
    for network in written.networks:
        library, name = index[network]
        owner = {"diffusers": diffusers, "transformers": transformers}[library]
        state = getattr(owner, name).from_pretrained(path / network).state_dict()
        # transformers 5 takes the inner model's prefix off in memory
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
        worst = 0.0
        for full, tensor in written.under(network).items():
            key, value = to_torch(full, tensor.read())
            loaded = state.pop(key.removeprefix("text_model."), None)
            if loaded is None or tuple(loaded.shape) != value.shape:
                raise UserError(f"{path}: {library} does not find {network}.{key} there")
            worst = max(worst, float(np.abs(loaded.float().numpy() - value.astype(np.float32)).max(initial=0)))
        yield f"{network}: loaded with {library}, largest difference {worst:.3g}"
