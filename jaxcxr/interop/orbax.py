"""Orbax checkpoints: a weightless diffusers folder `model/`, and `checkpoints/STEP/` beside it.

Each step holds separate items, so that weights can be read without the optimizer: `params` (every parameter
by its full name), `ema` (those that learn, averaged), and for training `opt_state`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.interop.diffusers import check_parameters, read_files
from jaxcxr.interop.pipeline import StableDiffusion, from_files, write_files

MODEL, CHECKPOINTS = "model", "checkpoints"


def is_orbax(path: Path) -> bool:
    """Whether `path` is a folder this module reads."""
    return (path / MODEL).is_dir() and (path / CHECKPOINTS).is_dir()


def latest_step(path: Path) -> int | None:
    """The last complete step under `path/checkpoints`, None if there is none."""
    steps = [int(folder.name) for folder in (path / CHECKPOINTS).glob("[0-9]*") if folder.name.isdecimal()]
    return max(steps, default=None)  # Orbax renames a step's folder to its number when it is complete


def load(
    path: str | Path, *, dtype: Any = jnp.float32, only: Iterable[str] | None = None, ema: bool = True
) -> StableDiffusion:
    """Reads the latest step of a workdir or of a converted checkpoint, onto one device.

    Args:
      path: the folder that holds `model/` and `checkpoints/`.
      dtype: the networks' compute dtype; parameters are float32.
      only: the networks wanted; all that are there if None.
      ema: take the averaged weights where the checkpoint has them.

    Raises:
      UserError: there is no complete step, or a tensor is missing, unexpected or misshapen, with its name.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    pipeline = from_files(read_files(path / MODEL), dtype, only)
    step = latest_step(path)
    if step is None:
        raise UserError(f"{path / CHECKPOINTS}: no complete checkpoint; train longer or copy the folder again")
    folder = path / CHECKPOINTS / str(step)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:

        def read(item: str) -> dict[str, jax.Array]:
            stored = checkpointer.metadata(folder / item).item_metadata.tree
            target = {n: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device) for n, m in stored.items()}
            return dict(checkpointer.restore(folder / item, target))

        found = read("params")
        if ema and (folder / "ema").is_dir():
            found |= read("ema")
    wanted = tuple(f"{network}." for network in pipeline.networks)
    found = {name: value for name, value in found.items() if only is None or name.startswith(wanted)}
    check_parameters(pipeline.parameters(), found, str(folder))
    return pipeline.with_parameters(found)


def save(pipeline: StableDiffusion, path: str | Path) -> None:
    """Writes `pipeline` as step 0 of a new folder; all of it or nothing.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    import orbax.checkpoint as ocp

    with new_folder(path) as folder:
        write_files(folder / MODEL, pipeline.files)
        with ocp.CheckpointManager((folder / CHECKPOINTS).absolute()) as manager:
            manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(pipeline.parameters())))
