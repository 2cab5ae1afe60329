"""The train loop; every run is this one, read from top to bottom."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr import buckets, interop, methods
from jaxcxr.data import stage
from jaxcxr.data.loader import Batches
from jaxcxr.data.records import EmptySplit
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.errors import UserError
from jaxcxr.files import is_whole
from jaxcxr.interop.config_files import CLASSIFIER, TEACHER
from jaxcxr.interop.diffusers import read_files, unknown_to_diffusers
from jaxcxr.interop.folder import CARRIED, OF_A_RUN
from jaxcxr.interop.orbax import MODEL
from jaxcxr.interop.pipeline import StableDiffusion, from_files
from jaxcxr.methods.diffusion import measure_scaling_factor
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel.processes import least, on_first
from jaxcxr.training import flops, labels, prepared, ranges
from jaxcxr.training.actions import Action, is_ahead, is_due
from jaxcxr.training.checkpoint import Checkpoints, claim, newest_whole, opened, read_frozen
from jaxcxr.training.early import Early
from jaxcxr.training.evaluator import Evaluator
from jaxcxr.training.feed import (
    check_cache,
    check_conditions,
    check_words,
    open_batches,
    some_images,
    tokenizer_folder,
    with_size,
    with_steps,
)
from jaxcxr.training.metrics import Metrics
from jaxcxr.training.model import compute_dtype, make_model, with_scaling_factor
from jaxcxr.training.pinned import pinned
from jaxcxr.training.prior import with_prior
from jaxcxr.training.program import Program, make_program
from jaxcxr.training.progress import Progress, banner
from jaxcxr.training.speed import Speed
from jaxcxr.training.step import State, averaged
from jaxcxr.training.stopping import Stopped, Stopping
from jaxcxr.training.trace import Trace
from jaxcxr.training.watch import Watch
from jaxcxr.workdir import Command, Prepared, read_config

_EVERY = ("log", "eval", "sample", "checkpoint")  # what is done every so many steps, beside evaluations of pictures
_WAYS = {"eval": Evaluator.validate, "evaluation": Evaluator.compare, "sample": Evaluator.picture}
_EVALUATED = tuple(_WAYS)
_NO_VALIDATION = (
    "{}: has no images in split 'validate', so there are no {} during training; to get such a split, run jaxcxr prepare"
    " into a new folder, with the share of patients for it: --config.data.validate_share=0.05"
)
_NEEDS_VALIDATION = {"eval": "validation losses", "sample": "pictures of reconstructions"}


def train(config: ConfigDict, workdir: Path, stop_at: int | None = None, command: Command | None = None) -> bool:
    """Trains in `workdir`, or resumes where it stopped, to `config.steps`.

    Args:
      config: as in `configs/base.py`.
      workdir: holds this config's run or nothing; gets `config.json`, `model/`, `checkpoints/`,
        `metrics.jsonl`, `tensorboard/`, `samples/`, `data.json` and `command.json`.
      stop_at: saves and returns at this step, as SIGTERM and Ctrl-C do at theirs.
      command: where the config is from; on record from the first start on.

    Returns:
      Whether the run is done: at its last step, or stopped early by its evaluations. Otherwise it was asked to stop.

    Raises:
      UserError: config, data, base checkpoint or workdir will not do; nothing is overwritten.
      FloatingPointError: a loss or gradient is not finite, more often than `config.skip_nonfinite` allows.
    """
    ranges.check(config)
    if config.profile.steps and buckets.holds(workdir):
        raise UserError(f"config.profile.steps={config.profile.steps}: no trace is written to {workdir}; set it to 0")
    on_first(lambda: buckets.check(workdir))
    local, places = stage.staged(pinned(config, workdir), quiet=jax.process_index() > 0)
    local = with_prior(with_steps(with_size(local)))
    config = stage.addressed(local, places)
    with Stopping() as stopping, opened(workdir, config):
        try:
            return _train(local, workdir, stop_at, stopping, functools.partial(claim, workdir, config, command=command))
        except Stopped:
            if jax.process_index() == 0:
                print(f"{workdir}: stopped before its first step; run again to resume")
            return False


def _train(
    config: ConfigDict, workdir: Path, stop_at: int | None, stopping: Stopping, claim: Callable[..., None]
) -> bool:
    began = time.perf_counter()
    run, parameters = _open(config, workdir)
    stop_at = min(config.steps, stop_at if stop_at is not None else config.steps)
    early = Early(config.stopping, workdir, run.start)
    if run.start >= stop_at or early.over:
        if jax.process_index() == 0:
            print(f"{workdir}: already trained to step {run.start}" + (f"; {early.said()}" if early.over else ""))
        return early.over or run.start >= config.steps
    trace = Trace(workdir / "tensorboard", config.profile.after, config.profile.steps)
    every = _intervals(config, run.validation is not None)
    evaluator = None
    if any(is_ahead(every[what], run.start, stop_at, config.steps) for what in _EVALUATED):
        evaluator = Evaluator(run.pipeline, run.program.loss, config, run.mesh, run.tokenizer, run.validation)
    state, frozen, checkpoints = _first_state(config, workdir, run, parameters, claim)
    del parameters
    values: Mapping[str, Any] = {}

    # Loggers get the config that is on record, with the addresses of what is staged.
    recorded, generated = read_config(workdir), not methods.method(config).of_images
    metrics = Metrics(workdir, run.start, config.loggers, recorded, generated=generated)
    progress = Progress(workdir, config.steps, run.start, _banner(config, run, every))
    watch = Watch(config.skip_nonfinite, lambda step: run.batches_of("train").places(step - 1))
    speed = Speed(
        began,
        config.batch_size,
        config.dtype,
        lambda: flops.of_step(config, run.pipeline, run.program.adaptation, run.batches.batch(run.start)),
    )

    def log(step: int) -> None:
        metrics.write(step, {**values, **speed.report()})

    def evaluated(what: str, do: Callable[..., Any]) -> Any:
        return do(_WAYS[what], evaluator, run.program.adaptation.expand(averaged(state), frozen))

    def evaluate(what: str, step: int) -> None:
        watch.catch_up()
        # A stop does not wait for it, and the next start makes up for that; but the last step has none.
        found = evaluated(what, stopping.unless_asked if step < config.steps else _at_once)
        _record(metrics, progress, step, what, found)
        early.see(step, found)

    def save(step: int) -> None:
        watch.catch_up()
        metrics.flush()  # what a state has done is written before it is kept, and never again after it
        checkpoints.save(state)
        progress.line(f"step {step}: saving a checkpoint")

    evaluations = [Action(what, every[what], functools.partial(evaluate, what)) for what in _EVALUATED]
    actions = [Action("log", every["log"], log, waits=False), *evaluations]
    saving = Action("checkpoint", every["checkpoint"], save)
    with metrics, checkpoints, trace:
        if evaluator:
            progress.doing("evaluating what it starts from")
        for action in evaluations:
            # While there is nothing to lose: it compiles for minutes, and what is wrong with it is known at once.
            if is_ahead(action.every, run.start, stop_at, config.steps):
                found = evaluated(action.name, stopping.unless_asked)
                if due := is_due(action.every, run.start, config.steps):
                    _record(metrics, progress, run.start, action.name, found)
                early.see(run.start if due else 0, found)
        if all(is_ahead(each.every, run.start, stop_at, config.steps) for each in evaluations if each.every):
            early.check()  # where all have spoken
        checkpoints.keep_best(early.best)
        progress.doing("compiling the step")
        stream = run.batches.iterate(run.start)
        for step in range(run.start + 1, stop_at + 1):
            with speed.waiting():
                own_rows = next(stream)
            batch = meshes.to_global(own_rows, run.mesh, config.batch_size)
            trace.before_step()
            if step == run.start + 1:  # which is compiled now
                state, values = stopping.unless_asked(run.program.step, state, frozen, batch)
                stopping.started()
            else:
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, values = run.program.step(state, frozen, batch)
            watch.see(step, values)
            speed.stepped(values)
            progress.stepped(values, speed.rate())
            if trace.after_step(values):
                speed.restart()

            done = [action for action in actions if is_due(action.every, step, config.steps)]
            for action in done:
                action.do(step)
            last = step == stop_at or early.over or stopping.agreed(step)
            if last or early.best == step or is_due(saving.every, step, config.steps):
                checkpoints.keep_best(early.best)
                saving.do(step)
                done.append(saving)
            if any(action.waits for action in done):
                speed.restart()  # none of it is the step's time
            if last:
                break
        progress.close()
    if jax.process_index() == 0:
        rest = f"; {early.said()}" if early.over else "; run again to resume" if step < config.steps else ""
        print(f"{workdir}: at step {step} of {config.steps}{rest}")
    return early.over or step >= config.steps


class _Run(NamedTuple):
    """What a run is made of; its state lies apart, as it is large and changes.

    Attributes:
      start: the step of the newest whole checkpoint, 0 without one.
      first_time: whether the workdir is new, so that the model is described by the config, and not by the workdir.
      data: what the data were prepared with.
      batches_of: gives the batches of a split.
    """

    start: int
    first_time: bool
    data: tuple[Prepared, ...]
    mesh: Mesh
    tokenizer: Any
    batches_of: Callable[..., Batches]
    pipeline: StableDiffusion
    program: Program
    batches: Batches
    validation: Batches | None


def _open(config: ConfigDict, workdir: Path) -> tuple[_Run, Mapping[str, Any] | None]:
    """Devices, data and model; and the first parameters, None where a checkpoint has them. Nothing is written."""
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
    rows = meshes.local_rows(mesh, config.batch_size)
    first_time = not is_whole(workdir / MODEL)
    if not first_time:
        prepared.check_there(workdir, config)
    tokenizer, data = load_tokenizer(tokenizer_folder(config)), prepared.describe(config)
    if first_time:
        prepared.check_settings(config, data)
    else:
        prepared.check_same(workdir, data)
    trained = newest_whole(workdir)

    dtype, key = compute_dtype(config), jax.random.key(config.seed)
    parameters: Mapping[str, Any] | None = None
    if first_time:
        pipeline, parameters = make_model(config, key)
        if config.model.measure_scaling_factor:
            factor = measure_scaling_factor(pipeline, parameters, some_images(config, tokenizer, 256))
            pipeline = with_scaling_factor(pipeline, factor, dtype)
    else:
        pipeline = from_files(read_files(workdir / MODEL, CARRIED | OF_A_RUN), dtype)
        if trained is None:  # stopped before the first checkpoint: the same seed gives the same weights
            _, parameters = make_model(config, key)
    tokenizer = pipeline.tokenizer if "text_encoder" in pipeline.networks else tokenizer
    teacher = pipeline.teacher_tokenizer if TEACHER in pipeline.networks else None
    classifies = CLASSIFIER in pipeline.networks
    classes = labels.classes_of(config, pipeline.classifier.config.classes, data) if classifies else None
    batches_of = functools.partial(open_batches, config, tokenizer=tokenizer, teacher=teacher, classes=classes)
    batches = batches_of("train", rows=rows)
    validation = _validation(config, batches_of, rows)
    if first_time:
        check_words(config, batches, data)
        check_conditions(batches, "train")
        if validation:
            check_conditions(validation, "validate")
    program = make_program(config, pipeline, mesh)
    if config.data.cache:
        check_cache(config, pipeline, program.learns, parameters if parameters is not None else _frozen(workdir))
    run = _Run(trained or 0, first_time, data, mesh, tokenizer, batches_of, pipeline, program, batches, validation)
    return run, parameters


def _first_state(
    config: ConfigDict, workdir: Path, run: _Run, parameters: Mapping[str, Any] | None, claim: Callable[..., None]
) -> tuple[State, dict[str, jax.Array], Checkpoints]:
    """The state, restored or made anew; what does not learn; and the checkpoints of a workdir that is then this run's.

    The workdir is claimed when all processes have read a batch, and the state where there is one: what stops before
    leaves the workdir as it was.
    """
    run.batches.batch(run.start)
    kept: Mapping[str, Any]
    if parameters is None:
        checkpoints = Checkpoints(workdir, config.keep)
        state, kept = checkpoints.restore(run.program.state), read_frozen(workdir, run.start, run.program.frozen)
        frozen = run.program.place(kept)
    else:
        kept = run.program.adaptation.frozen(parameters)
        state, frozen = run.program.init(parameters, jax.random.key(config.seed))
    least(0)  # waits for all
    files = run.pipeline.files | run.program.adaptation.file() if run.first_time else None
    on_first(lambda: claim(files, run.data, frozen=kept))
    return state, frozen, checkpoints if parameters is None else Checkpoints(workdir, config.keep)


def _banner(config: ConfigDict, run: _Run, every: Mapping[str, int]) -> list[str]:
    """The lines that a run begins with."""
    images = {"train": run.batches.images} | ({"validate": run.validation.images} if run.validation else {})
    lines = banner(config, run.program, images, run.start)
    if off := [text for what, text in _NEEDS_VALIDATION.items() if every[what] != config[f"{what}_every"]]:
        lines.append(_NO_VALIDATION.format(config.data.path, " and no ".join(off)))
    if "wandb" in config.loggers and every["sample"] and methods.method(config).of_images:
        lines.append("W&B gets no pictures of this run: they hold images of the data set, and stay in samples/")
    if what := unknown_to_diffusers(run.pipeline.files):
        lines.append(f"warning: the U-Net has {what}, which diffusers does not have: jaxcxr alone can read it")
    return lines


def _frozen(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters of the networks that a cache may stand in for, of a run that has a checkpoint, on the host."""
    found = interop.read(workdir, only=("vae", "text_encoder"), ema=False)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def _validation(config: ConfigDict, batches_of: Callable[..., Batches], rows: np.ndarray) -> Batches | None:
    """These rows of the batches to evaluate on; None if the data have none, or they are not needed."""
    if not config.eval_every and not (config.sample_every and methods.method(config).of_images):
        return None
    try:
        return batches_of("validate", rows=rows, shuffle=False)
    except EmptySplit:
        return None


def _intervals(config: ConfigDict, validation: bool) -> dict[str, int]:
    """How many steps lie between what is done every so many; 0 is never, as without the images that it needs."""
    every = {what: config[f"{what}_every"] for what in _EVERY} | {"evaluation": config.evaluation.every}
    missing = () if validation else _EVALUATED if methods.method(config).of_images else ("eval",)
    return every | dict.fromkeys(missing, 0)


def _at_once(do: Callable[..., Any], *args: Any) -> Any:
    return do(*args)


def _record(metrics: Metrics, progress: Progress, step: int, what: str, found: Any) -> None:
    """Puts an evaluation on record, unless a stop has left it out."""
    if found is None:
        return
    if what == "sample":
        metrics.picture(step, found)
        progress.line(f"step {step}: picture samples/{step:08d}.png")
        return
    metrics.write(step, found)
    said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
    progress.line(f"step {step}: {said}")
