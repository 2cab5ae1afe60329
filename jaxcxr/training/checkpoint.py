"""Saving and restoring the train state; the layout is `jaxcxr.interop.orbax`'s."""

import contextlib
import errno
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxcxr import buckets
from jaxcxr import config as configs
from jaxcxr.data import settings, stage
from jaxcxr.errors import UserError, one_line
from jaxcxr.files import is_whole, locked_folder, new_folder, remove, replace_file
from jaxcxr.interop import checksums
from jaxcxr.interop.orbax import (
    CHECKPOINTS,
    FROZEN,
    MODEL,
    best_step,
    disk_errors,
    latest_step,
    no_steps,
    read_item,
    remove_unfinished_steps,
    steps,
    write_best,
    write_frozen,
)
from jaxcxr.interop.pipeline import write_files
from jaxcxr.interop.tensors import Tensor
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel.processes import from_first, least, on_first
from jaxcxr.training import schema
from jaxcxr.training.step import State
from jaxcxr.workdir import (
    CONFIG,
    DATA,
    METRICS,
    Command,
    Prepared,
    read_command,
    read_config,
    read_metrics,
    write_command,
    write_data,
)

_NONE_YET = ".none_yet"  # a file in `checkpoints` until the first of them is complete
# Of a train state, by the names that they have on the disk; its step is the folder's name.
_ITEMS = {"params": "learnt", "ema": "average", "opt_state": "opt_state", "nonfinite": "nonfinite"}
# What may differ when a run resumes: how far it goes, what it shows, and what it runs on.
MAY_CHANGE = frozenset(
    [
        "steps",
        "epochs",
        "stopping",
        "evaluation",
        "loggers",
        "log_every",
        "eval_every",
        "eval_batches",
        "sample_every",
        "checkpoint_every",
        "keep",
        "mesh",
        "sharding",
        "ema_sharding",
        "ema_memory",
        "accumulation",
        "attention",
        "remat",
        "skip_nonfinite",
        "samples",
        "profile",
    ]
)


@contextlib.contextmanager
def opened(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Keeps `workdir` for this job alone, all of its processes together, after a look whether it will do.

    Raises:
      UserError: as `check_workdir`; another job trains in it; or later, in the block, its disk is full.
    """
    with contextlib.ExitStack() as held:

        def take() -> None:
            buckets.check(workdir)
            check_workdir(workdir, config)
            held.enter_context(locked_folder(workdir, private=True))

        on_first(take)
        try:
            with buckets.explained(workdir):
                yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"{workdir}: a checkpoint or its metrics cannot be written ({error.strerror});"
                f" the last complete one is step {latest_step(workdir)}; make room and run again"
            ) from error


def resumed(workdir: Path, overrides: Sequence[str]) -> ConfigDict:
    """The config of the run that `workdir` holds, with overrides.

    Raises:
      UserError: it holds none, its config is damaged, or an override does not fit it.
    """
    values = read_config(workdir)
    if values is None:
        raise UserError(f"{workdir}: holds no run to resume; give --config FILE.py to start one")
    return configs.changed(schema.completed(values, str(workdir / CONFIG)), overrides, buckets=stage.KEYS)


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Sees to it that `workdir` may hold this config's run; writes nothing.

    Raises:
      UserError: it holds another config's run or something that is no run, has lost a part, or cannot be read.
    """
    try:
        old = read_config(workdir)
        if old is not None:
            kept = schema.completed(old, str(workdir / CONFIG))
            _check_difference(workdir, kept.to_dict(), config.to_dict())
            _check_parts(workdir, min(kept.checkpoint_every or kept.steps, kept.steps))
        elif workdir.exists() and any(not file.name.startswith(".") for file in workdir.iterdir()):
            raise UserError(f"{workdir}: is not empty and holds no run; name another --workdir")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be read ({error.strerror}); name another --workdir") from error


def _check_difference(workdir: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    # What a folder holds is compared by its fingerprint where that is on record, so that it may move.
    moved = (workdir / DATA).is_file()
    difference = configs.first_difference(_lasting(_as_read(old), moved), _lasting(_as_read(new), moved))
    if difference is None:
        return
    command = read_command(workdir)
    given = command.override_of(difference.partition(" was ")[0]) if command else None
    first = f"; the run was started with {given}" if given else ""
    of = f" of {command.config}" if command else ""
    raise UserError(
        f"{workdir}: holds a run of another config ({difference}{first});"
        f" give --workdir without --config to resume that run{of}, or name another --workdir"
    )


def _check_parts(workdir: Path, first: int) -> None:
    """Raises UserError where a run has lost its checkpoints, the first of them of step `first`, or its model."""
    folder, has_model = workdir / CHECKPOINTS, is_whole(workdir / MODEL)
    if buckets.holds(workdir) and not has_model and (steps(workdir) or no_steps(workdir)):
        raise UserError(
            f"{workdir}: has checkpoints, but {MODEL}/ lacks its mark {buckets.COMPLETE}, as in a copy of a local run;"
            " resume the run where it was written, or name another --workdir"
        )
    if steps(workdir):
        if not has_model:
            raise UserError(f"{workdir / MODEL}: is missing; put it back to resume, or name another --workdir")
        return
    reached = max((int(row["step"] or 0) for row in read_metrics(workdir)), default=0)
    if folder.is_dir():
        # Killed before its first checkpoint is complete, a run has the mark, or the step under its temporary name; in a
        # bucket, under its own.
        unfinished = no_steps(workdir) if buckets.holds(workdir) else list(folder.glob("*.orbax-checkpoint-tmp*"))
        begun = (folder / _NONE_YET).exists() or unfinished
        lost = reached >= first and not begun
    else:
        lost = has_model and reached > 0
    if lost:
        raise UserError(
            f"{folder}: has no checkpoint, but {METRICS} reaches step {reached}; put the checkpoints back to resume,"
            f" remove {workdir / METRICS} to train from the start, or name another --workdir"
        )


def claim(
    workdir: Path,
    config: ConfigDict,
    files: Mapping[str, bytes] | None,
    data: tuple[Prepared, ...] = (),
    command: Command | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> None:
    """Makes `workdir` this config's, and puts on record what its data were prepared with.

    The config comes first: a run stopped at any moment leaves nothing else, or a folder that is known as this run's.

    Args:
      workdir: new, or a run's.
      config: of the run.
      files: the pipeline's without weights, the first time.
      data: what `data.json` has.
      command: how the run was started, for the first time.
      frozen: the parameters that do not learn, arrays or tensors, for a workdir that does not have them yet.
    """
    replace_file(workdir / CONFIG, configs.to_json(config).encode())
    if data:
        write_data(workdir, data)
    if files is not None:
        if command is not None:
            write_command(workdir, command)
        with new_folder(workdir / MODEL) as folder:
            write_files(folder, files)
    if frozen and not is_whole(workdir / FROZEN):
        write_frozen(workdir, frozen)


def newest_whole(workdir: Path) -> int | None:
    """The newest checkpoint whose files are what was written; None if there is none at all.

    Newer ones that are damaged are moved aside, to `STEP.damaged`, as is what has the name of a step and is none. One
    without checksums is taken to be whole. Every process reads its share of the files.

    Raises:
      UserError: all of them are damaged.
    """
    damaged: dict[int, str] = {}
    on_first(functools.partial(remove_unfinished_steps, workdir))
    on_first(functools.partial(_set_aside, dict.fromkeys(no_steps(workdir), "is no checkpoint")))
    # One process lists them for all: from a network disk the others may still get an older listing.
    for step in from_first(lambda: steps(workdir)):
        part = (jax.process_index(), jax.process_count())
        what = checksums.damage(workdir / CHECKPOINTS / str(step), part=part, agree=least)
        if what is None:
            if damaged:
                found = {workdir / CHECKPOINTS / str(each): f"is damaged, {why}" for each, why in damaged.items()}
                on_first(functools.partial(_set_aside, found))
                on_first(functools.partial(print, f"{workdir}: resumes from step {step}"))
            return step
        damaged[step] = what
    if damaged:
        step, what = next(iter(damaged.items()))
        raise UserError(
            f"{workdir / CHECKPOINTS}: every checkpoint is damaged, of step {step} {what};"
            " copy one back, or name another --workdir"
        )
    return None


def _set_aside(found: Mapping[Path, str]) -> None:
    """Renames what is in the place of a step, with a line that says why."""
    for path, why in found.items():
        aside = path.with_name(f"{path.name}.damaged")
        remove(aside)
        path.replace(aside)
        print(f"{path}: {why}; it is now {aside}")


def read_frozen(workdir: Path, step: int, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters of these names, which do not learn, in a workdir with a checkpoint of `step`.

    Raises:
      UserError: one is missing, or the file is damaged.
    """
    folder = workdir / FROZEN
    if not wanted:
        return {}
    if not is_whole(folder):  # a run of before they were kept apart
        folder = workdir / CHECKPOINTS / str(step)
    elif what := checksums.damage(folder):
        raise UserError(f"{folder}: is damaged, {what}; copy it back, or name another --workdir")
    found = read_item(folder / "params")
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"{folder}: has no {missing[0]}; copy {workdir / FROZEN} back, or name another --workdir")
    return {name: found[name] for name in wanted}


class Checkpoints:
    """The checkpoints of one workdir, the newest `keep` of them and the best; saving does not wait for the disk.

    As a context it closes at its end, and when a loss is not finite: what came before is kept.
    So it is the next `save`, or `close`, that raises OSError if one could not be written.
    A step becomes complete together with the checksums of its files.

    Attributes:
      best: the step that is kept whatever comes after it; None: none is.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder, self._saving, self._keep = (workdir / CHECKPOINTS).absolute(), -1, keep
        self.best: int | None = best_step(workdir)
        finishing = ocp.AsyncOptions(post_finalization_callback=self._add_checksums)
        options = ocp.CheckpointManagerOptions(preservation_policy=self, async_options=finishing)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        if jax.process_index() == 0 and not steps(workdir):
            (self._folder / _NONE_YET).touch()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the steps Orbax keeps, in their order."""
        first = len(checkpoints) - self._keep
        return [number >= first or each.step == self.best for number, each in enumerate(checkpoints)]

    def keep_best(self, step: int | None) -> None:
        """Keeps a step, whatever comes after it, and puts it on record as the best once it is complete."""
        if step != self.best:
            self.best = step
            if step is not None and step in self._manager.all_steps() and jax.process_index() == 0:
                write_best(self._folder.parent, step)

    def latest(self) -> int | None:
        """The last complete step, None before the first."""
        return self._manager.latest_step()

    def save(self, state: State) -> None:
        """Saves `state` under its own step, unless it is there already."""
        step = int(state["step"])
        if step != self.latest():
            items = {item: ocp.args.StandardSave(state[name]) for item, name in _ITEMS.items()}
            with disk_errors():
                self._manager.wait_until_finished()
                self._saving = step
                self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, state: State) -> State:
        """The latest state, in the structure and on the shardings of `state` (arrays or shapes)."""
        step = self.latest()
        assert step is not None
        folder = self._folder / str(step)
        items = {item: ocp.args.StandardRestore(state[name]) for item, name in _ITEMS.items()}
        try:
            stored = read_item(folder / "params")
            if more := stored.keys() - state["learnt"].keys():  # of before what does not learn was kept apart
                del items["params"]
            restored = dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        except (ValueError, KeyError, TypeError, OSError, UserError) as error:
            if (folder / checksums.CHECKSUMS).is_file():
                raise  # the files are as they were written
            said = one_line(error)
            older = [each for each in self._manager.all_steps() if each < step]
            remedy = (
                f"move it away to resume from step {max(older)}" if older else "copy it back, or name another --workdir"
            )
            raise UserError(f"{folder}: cannot be restored ({said}); {remedy}") from error
        if more:
            learnt = state["learnt"].items()
            restored["params"] = {name: meshes.split(stored[name].read(), leaf.sharding) for name, leaf in learnt}
        found = {name: restored[item] for item, name in _ITEMS.items()}
        return {"step": jax.device_put(jax.numpy.int32(step), state["step"].sharding), **found}

    def _add_checksums(self) -> None:
        """Is called in Orbax's thread when all files of a step are written, before the step gets its name."""
        if jax.process_index() == 0:
            step = str(self._saving)
            for folder in self._folder.glob(f"{step}*"):
                if folder.name == step or (folder.name.startswith(f"{step}.") and "tmp" in folder.name):
                    checksums.write(folder)
            if self.best == self._saving:
                write_best(self._folder.parent, self.best)
            (self._folder / _NONE_YET).unlink(missing_ok=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or issubclass(kind, FloatingPointError):
            self.close()

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        with disk_errors():
            self._manager.wait_until_finished()
        self._manager.close()


def _as_read(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it is read back from JSON."""
    return json.loads(json.dumps(config, default=list))


def _lasting(config: dict[str, Any], moved: bool) -> dict[str, Any]:
    """The keys of a config that a run keeps; folders of data by whether they are there alone if they may have moved."""
    lasting = {key: value for key, value in config.items() if key not in MAY_CHANGE}
    # A config of before a setting of preparing was there has its default, which need not be off.
    data = json.loads(configs.to_json(settings.defaults())) | lasting.get("data", {})
    data.pop("stage", None)
    if moved:
        data.pop("path", None)
        entries = [each if isinstance(each, list) else [each] for each in data.get("mixture", ())]
        mixture = [[*each[1:2], bool(each[2:3] and each[2])] for each in entries]
        data |= {"cache": bool(data.get("cache")), "mixture": mixture}
    return lasting | {"data": data}
