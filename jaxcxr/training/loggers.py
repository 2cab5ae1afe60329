"""Where metrics and pictures go beside the workdir's own files: TensorBoard, Weights & Biases."""

import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxcxr import parsing
from jaxcxr.errors import UserError, one_line
from jaxcxr.files import replace_file

WANDB = "wandb.json"
"""The file of a workdir with the id of its W&B run, so that a run that resumes is one run there too."""


class Logger(Protocol):
    """Takes what a run measures, from its first process alone.

    Attributes:
      leaves: whether it may send what it takes elsewhere; it gets no images of the data set then.
    """

    leaves: bool

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes finite scalars of a step."""

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Takes a sheet, uint8 (H, W, C)."""

    def flush(self) -> None:
        """Puts what it has taken on the disk."""

    def close(self, failed: bool) -> None:
        """Ends the log; `failed` says whether the run ended with an error."""


class TensorBoard:
    """Event files in the workdir's `tensorboard/`."""

    leaves = False

    def __init__(self, workdir: Path, folder: Path, start: int, config: Mapping[str, Any]):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Writes an image."""
        self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Puts the events on the disk."""
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Closes the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, which has the config, the scalars and the pictures of generated samples.

    Project, entity and mode are W&B's own: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline. Neither code, console nor
    machine is recorded. `step` is a value by which W&B draws the curves: its own counter only rises, so that steps that
    are done again after a restart would be dropped.
    """

    leaves = True

    def __init__(self, workdir: Path, folder: Path, start: int, config: Mapping[str, Any]):
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_machine_info=True,  # the command line and its folder too
            x_save_requirements=False,
            host="-",  # without one it is the machine's
        )
        try:
            self._run = wandb.init(
                id=_run_id(workdir),
                resume="allow",
                name=workdir.absolute().name,
                dir=str(folder.absolute()),
                config=_without_prompts(config),
                allow_val_change=True,  # of what may change when a run resumes
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"config.loggers: W&B does not start ({one_line(error)}); run wandb login, set WANDB_MODE=offline, or"
                " leave wandb out of config.loggers"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs scalars."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Logs an image."""
        self._run.log({"step": step, "samples": self._wandb.Image(pixels.squeeze())})

    def flush(self) -> None:
        """W&B writes by itself."""

    def close(self, failed: bool) -> None:
        """Waits until all is on the disk or sent."""
        self._run.finish(exit_code=int(failed))


LOGGERS: dict[str, tuple[str, Callable[[Path, Path, int, Mapping[str, Any]], Logger], str]] = {
    "tensorboard": ("tensorboardX", TensorBoard, "pip install tensorboardX"),
    "wandb": ("wandb", WandB, "pip install 'jaxcxr[wandb]'"),
}
"""By name: the package, the logger, and the command that installs the package."""


def check(names: Sequence[str]) -> None:
    """Raises UserError for the first of `config.loggers` that is unknown, is there twice or is not installed."""
    for number, name in enumerate(names):
        if name not in LOGGERS:
            known = ", ".join(LOGGERS)
            raise UserError(f"config.loggers={tuple(names)!r:.200}: {name!r:.50} is no logger; it may be {known}")
        if name in names[:number]:
            raise UserError(f"config.loggers={tuple(names)!r:.200}: has {name} twice")
        package, _, command = LOGGERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"config.loggers: {name} wants a package that is not installed; {command}")


def opened(names: Sequence[str], workdir: Path, folder: Path, start: int, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers of these names, for a run that resumes after step `start`; what grows is written in `folder`."""
    return [LOGGERS[name][1](workdir, folder, start, config) for name in names]


def _without_prompts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the prompts of its samples, which may be the reports of patients."""
    samples = {name: value for name, value in config.get("samples", {}).items() if name != "prompts"}
    return {**config, "samples": samples}


def _run_id(workdir: Path) -> str:
    file = workdir / WANDB
    if file.is_file():
        found: dict[str, str] = parsing.read_json(file, dict[str, str], remedy=f"remove {file} to log as a new run")
        if set(found) == {"id"} and found["id"].isalnum() and len(found["id"]) <= 64:
            return found["id"]
        raise UserError(f"{file}: holds no id of a run; remove it to log as a new run")
    made = secrets.token_hex(8)
    replace_file(file, (json.dumps({"id": made}) + "\n").encode())
    return made
