"""Checkpoints of every kind in, diffusers folders, single files and Orbax out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr import bases, buckets, hub
from jaxcxr.errors import UserError
from jaxcxr.interop import diffusers, flax_legacy, orbax, single_file, verify, wanted
from jaxcxr.interop.checkpoint import Checkpoint, check
from jaxcxr.interop.config_files import CONTROLNET, network_config_of
from jaxcxr.interop.pipeline import StableDiffusion, from_files
from jaxcxr.interop.tensors import Tensor

__all__ = [
    "Checkpoint",
    "StableDiffusion",
    "diffusers",
    "load",
    "load_read",
    "orbax",
    "read",
    "save",
    "single_file",
    "verify",
    "with_controlnet",
]


def read(
    path: str | Path,
    *,
    only: Iterable[str] | None = None,
    ema: bool = True,
    config: Path | None = None,
    prediction_type: str | None = None,
) -> Checkpoint:
    """Opens a checkpoint of any kind: a diffusers folder, a workdir, Orbax, Flax msgpack,
    a single file, a text encoder's folder of transformers.

    Args:
      path: the checkpoint's folder or file, the name of a base that comes with the package, or that of a repository
        of the Hugging Face Hub (`hub.Name`), of which the files that are needed are downloaded.
      only: the networks wanted, e.g. `("vae",)`; all that are there if None.
      ema: take the averaged weights where there are any.
      config: for a single file, a diffusers folder of the same architecture, with its tokenizer.
      prediction_type: for a single file of Stable Diffusion 2, which does not say: epsilon or v_prediction.

    Raises:
      UserError: nothing readable at `path`, or a tensor is missing, unexpected or misshapen.
    """
    path = hub.find(path, wanted.of_checkpoint(only))
    if buckets.holds(path):
        buckets.check(path)
        google = str(path).startswith("gs://")
        if not (google and orbax.is_orbax(path)):
            copy = "gcloud storage cp" if google else "aws s3 cp"
            raise UserError(
                f"{path}: in a bucket, a workdir of jaxcxr train on gs:// is read, and this is none that is there; of"
                f" another checkpoint type {copy} --recursive {path} . and give the copy"
            )
    if path.is_file():
        checkpoint = single_file.read(path, config=config, prediction_type=prediction_type, ema=ema)
    elif not path.is_dir():
        raise UserError(
            f"{path}: no such file or folder; a checkpoint is a diffusers folder, a workdir, a file, ORG/NAME of the"
            f" Hugging Face Hub or one of the bases that come with jaxcxr: {', '.join(bases.NAMES)}"
        )
    elif orbax.is_orbax(path):
        checkpoint = orbax.read(path, ema=ema, only=only)
    elif flax_legacy.is_flax(path) and not diffusers.has_weights(path):
        checkpoint = flax_legacy.read(path)
    elif diffusers.is_encoder(path):
        checkpoint = diffusers.read_encoder(path)
    else:
        checkpoint = diffusers.read(path, only)
    return check(checkpoint.only(only), str(path))


def with_controlnet(checkpoint: Checkpoint, path: str | Path, *, ema: bool = True) -> Checkpoint:
    """A checkpoint with a ControlNet in it.

    Args:
      checkpoint: with the U-Net that the ControlNet was trained for.
      path: a folder with a ControlNet alone, or a checkpoint that has one, such as the workdir of a run; or the name
        of a repository of the hub.
      ema: take the averaged weights where there are any.

    Raises:
      UserError: there is none, or it was trained for another U-Net.
    """
    path = hub.find(path, wanted.of_checkpoint((CONTROLNET,)))
    of_a_run = orbax.is_orbax(path)
    alone = (path / "config.json").is_file() and not of_a_run
    if not (of_a_run or alone or (path / CONTROLNET).is_dir()):
        raise UserError(
            f"{path}: has no ControlNet; give a folder of one, with its config.json, or the workdir of a run"
        )
    found = check(diffusers.read_controlnet(path), str(path)) if alone else read(path, only=(CONTROLNET,), ema=ema)
    if CONTROLNET not in found.networks:
        raise UserError(f"{path}: has no ControlNet")
    own = network_config_of(CONTROLNET, found.files[f"{CONTROLNET}/config.json"])
    unet = network_config_of("unet", checkpoint.files["unet/config.json"])
    for key in ("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim"):
        if getattr(own, key) != getattr(unet, key):
            raise UserError(
                f"{path}: is for another U-Net: its {key} is {getattr(own, key)}, this U-Net's {getattr(unet, key)}"
            )
    files = {name: data for name, data in found.files.items() if name.startswith(f"{CONTROLNET}/")}
    tensors = {name: each for name, each in found.tensors.items() if name.startswith(f"{CONTROLNET}.")}
    return Checkpoint(checkpoint.files | files, checkpoint.tensors | tensors)


def load(
    path: str | Path, *, dtype: Any = jnp.float32, only: Iterable[str] | None = None, ema: bool = True
) -> StableDiffusion:
    """Reads a checkpoint of any kind into networks on one device.

    Args:
      path: as for `read`, like `only` and `ema`.
      dtype: the networks' compute dtype; parameters are float32.

    Raises:
      UserError: as `read`.
    """
    return load_read(read(path, only=only, ema=ema), dtype=dtype)


def load_read(checkpoint: Checkpoint, *, dtype: Any = jnp.float32) -> StableDiffusion:
    """Reads an opened checkpoint's tensors into networks on one device; `dtype` as for `load`."""
    pipeline = from_files(checkpoint.files, dtype, checkpoint.networks)
    values = {name: jnp.asarray(tensor.read(), jnp.float32) for name, tensor in checkpoint.tensors.items()}
    return pipeline.with_parameters(values)


def save(pipeline: StableDiffusion, path: str | Path, *, dtype: Any = np.float32) -> None:
    """Writes networks as a diffusers folder.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    diffusers.write(as_checkpoint(pipeline), path, dtype=dtype)


def as_checkpoint(pipeline: StableDiffusion) -> Checkpoint:
    """The networks' parameters as a checkpoint to write."""
    arrays = {name: np.asarray(jax.device_get(value)) for name, value in pipeline.parameters().items()}
    return Checkpoint(pipeline.files, {name: Tensor.of(array) for name, array in arrays.items()})
