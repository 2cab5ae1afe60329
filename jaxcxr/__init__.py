"""Latent diffusion for chest X-rays and radiology reports in JAX, with checkpoints that are diffusers folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxcxr import platforms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxcxr.pipeline import Pipeline

__version__ = "0.1.0"

# Here, so that it holds for every process that imports the package: a notebook, a worker, a script.
platforms.only_those_here()


def load(
    path: str | Path,
    *,
    dtype: str | None = None,
    weights: str = "ema",
    adapter: str | Path | Sequence[str | Path] = (),
    adapter_weight: float | Sequence[float] = (),
    controlnet: str | Path | None = None,
) -> Pipeline:
    """Reads a checkpoint of any kind, ready to draw; see `jaxcxr.pipeline.load`. JAX is imported here, not before."""
    from jaxcxr import pipeline

    return pipeline.load(
        path, dtype=dtype, weights=weights, adapter=adapter, adapter_weight=adapter_weight, controlnet=controlnet
    )
