"""Checkpoints of every kind in, diffusers folders and Orbax out."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxcxr.errors import UserError
from jaxcxr.interop import diffusers, orbax
from jaxcxr.interop.diffusers import save
from jaxcxr.interop.pipeline import StableDiffusion

__all__ = ["StableDiffusion", "load", "save"]


def load(path: str | Path, *, dtype: Any = jnp.float32, only: tuple[str, ...] | None = None, ema: bool = True):
    """Reads a checkpoint of any kind: a diffusers folder, a workdir, a converted Orbax folder.

    Args:
      path: the checkpoint's folder.
      dtype: the networks' compute dtype; parameters are float32.
      only: the networks wanted, e.g. `("vae",)`; all that are there if None.
      ema: for Orbax, take the averaged weights where there are any.

    Raises:
      UserError: nothing readable at `path`, or a tensor is missing, unexpected or misshapen.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; a checkpoint is a diffusers folder or a workdir")
    if orbax.is_orbax(path):
        return orbax.load(path, dtype=dtype, only=only, ema=ema)
    return diffusers.load(path, dtype=dtype, only=only)
