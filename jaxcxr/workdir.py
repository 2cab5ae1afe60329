"""What a workdir of `jaxcxr train` says of its run, beside the weights: the names of the files, and readers of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.files import replace_file

CONFIG = "config.json"
METRICS = "metrics.jsonl"
DATA = "data.json"
COMMAND = "command.json"
_MOST_METRICS = 16 * 2**30  # bytes

Row = dict[str, float | int | None]
"""A line of the metrics: `step`, and values by name; one that was not finite is None."""


@dataclasses.dataclass(frozen=True)
class Command:
    """How a run was first started, the content of `command.json`."""

    config: str
    overrides: tuple[str, ...]

    def override_of(self, key: str) -> str | None:
        """The override that set a dotted key, or a key above it; None if the command line did not set it."""
        names = {override.removeprefix("--config.").partition("=")[0]: override for override in self.overrides}
        return next((given for name, given in names.items() if f"{key}.".startswith(f"{name}.")), None)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a folder of data that a run learns from was prepared with. No report text, no patient ids.

    Attributes:
      path: of the folder.
      weight: of the folder in a mixture.
      source: the kind of the raw data.
      fingerprint: of the prepared folder; empty for raw data.
      settings: `config.data` at its preparation.
      splits: images by split.
      views: images by split and view.
      labels: images by split and label.
      weights: a digest of the table `config.data.weights`; empty without one, and in workdirs of before it was kept.
    """

    path: str
    weight: float
    source: str
    fingerprint: str
    settings: dict[str, Any]
    splits: dict[str, int]
    views: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class _Data:
    folders: tuple[Prepared, ...]


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The config of a run as nested dicts; None if the folder has none.

    Raises:
      UserError: it is damaged.
    """
    file = workdir / CONFIG
    return parsing.read_json(file, dict[str, Any], remedy="restore it") if file.is_file() else None


def read_metrics(workdir: Path) -> list[Row]:
    """The metrics of a run, one that is training or finished; empty if there are none.

    Raises:
      UserError: the file is damaged.
    """
    return [row for _, row in read_metric_lines(workdir)]


def read_metric_lines(workdir: Path) -> list[tuple[str, Row]]:
    """The lines of a run's metrics with their values. What follows the last line feed is still being written."""
    file = workdir / METRICS
    if not file.is_file():
        return []
    found = []
    data = parsing.read_bytes(file, _MOST_METRICS).rpartition(b"\n")[0]
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        name, remedy = f"{file}: line {number}", f"remove {file} to do without the curves"
        row: Row = parsing.parse_json(line, Row, name, remedy=remedy)
        step = row.get("step")
        if not isinstance(step, int) or not 0 <= step < 2**53:
            raise UserError(f"{name}: step is {step!r}, which is no step; {remedy}")
        found.append((line.decode() + "\n", row))
    return found


def read_data(workdir: Path) -> tuple[Prepared, ...] | None:
    """What the data of a run were prepared with; None if the run was started before that was recorded.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / DATA
    remedy = f"remove {file}; the next start of the run writes it"
    return parsing.read_json(file, _Data, remedy=remedy).folders if file.is_file() else None


def write_data(workdir: Path, folders: tuple[Prepared, ...]) -> None:
    """Writes `data.json`."""
    replace_file(workdir / DATA, (json.dumps(dataclasses.asdict(_Data(folders)), indent=2) + "\n").encode())


def read_command(workdir: Path) -> Command | None:
    """How a run was first started; None if that was not recorded.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / COMMAND
    return parsing.read_json(file, Command, remedy=f"remove {file}") if file.is_file() else None


def write_command(workdir: Path, command: Command) -> None:
    """Writes `command.json`."""
    replace_file(workdir / COMMAND, (json.dumps(dataclasses.asdict(command), indent=2) + "\n").encode())
