"""The train loop; every run is this one, read from top to bottom."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr import interop
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.interop.diffusers import read_files
from jaxcxr.interop.orbax import MODEL, latest_step
from jaxcxr.interop.pipeline import from_files
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel.processes import on_first
from jaxcxr.training import flops, ranges
from jaxcxr.training.checkpoint import Checkpoints, claim, opened
from jaxcxr.training.feed import check_cache, open_batches, some_images, tokenizer_folder
from jaxcxr.training.judge import Judge
from jaxcxr.training.metrics import Metrics
from jaxcxr.training.model import compute_dtype, make_model, with_scaling_factor
from jaxcxr.training.objectives import measure_scaling_factor
from jaxcxr.training.program import make_program
from jaxcxr.training.speed import Speed
from jaxcxr.training.step import State, averaged
from jaxcxr.training.stopping import Stopped, Stopping
from jaxcxr.training.trace import Trace
from jaxcxr.training.watch import Watch

_EVERY = ("log", "eval", "sample", "checkpoint")  # what is done every so many steps
_JUDGED = ("eval", "sample")


def train(config: ConfigDict, workdir: Path, stop_at: int | None = None) -> None:
    """Trains in `workdir`, or goes on where it stopped, to `config.steps`.

    Args:
      config: as in `configs/base.py`.
      workdir: holds this config's run or nothing; gets `config.json`, `model/`, `checkpoints/`,
        `metrics.jsonl`, `tensorboard/` and `samples/`.
      stop_at: saves and returns at this step, as SIGTERM and Ctrl-C do at theirs.

    Raises:
      UserError: config, data, base checkpoint or workdir will not do; nothing is overwritten.
      FloatingPointError: a loss or gradient is not finite, more often than `config.skip_nonfinite` allows.
    """
    ranges.check(config)
    with Stopping() as stopping, opened(workdir, config):
        try:
            _train(config, workdir, stop_at, stopping)
        except Stopped:
            if jax.process_index() == 0:
                print(f"{workdir}: stopped before its first step; run again to go on")


def _train(config: ConfigDict, workdir: Path, stop_at: int | None, stopping: Stopping) -> None:
    began = time.perf_counter()
    # --- Devices and data -------------------------------------------------------------------------------
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
    trace = Trace(workdir / "tensorboard", config.profile.after, config.profile.steps)
    tokenizer = load_tokenizer(tokenizer_folder(config))
    first_time, trained = not (workdir / MODEL).is_dir(), latest_step(workdir)

    # --- Model: described by the config the first time, by the workdir from then on ----------------------
    dtype, key = compute_dtype(config), jax.random.key(config.seed)
    parameters: Mapping[str, Any] | None = None
    if first_time:
        pipeline, parameters = make_model(config, key)
        if config.model.measure_scaling_factor:
            factor = measure_scaling_factor(pipeline, parameters, some_images(config, tokenizer, 256))
            pipeline = with_scaling_factor(pipeline, factor, dtype)
    else:
        pipeline = from_files(read_files(workdir / MODEL), dtype)
        if trained is None:  # stopped before the first checkpoint: the same seed gives the same weights
            _, parameters = make_model(config, key)
    tokenizer = pipeline.tokenizer if "text_encoder" in pipeline.networks else tokenizer
    batches = open_batches(config, "train", tokenizer, rows=meshes.local_rows(mesh, config.batch_size))
    program = make_program(config, pipeline, mesh)
    if config.data.cache:
        check_cache(config, pipeline, program.learns, parameters if parameters is not None else _frozen(workdir))
    on_first(lambda: claim(workdir, config, pipeline.files if first_time else None))

    # --- State: restored, or made anew --------------------------------------------------------------------
    checkpoints = Checkpoints(workdir, config.keep)
    state = checkpoints.restore(program.state) if parameters is None else program.init(parameters)
    del parameters
    start, quiet = int(state["step"]), jax.process_index() > 0
    stop_at = min(config.steps, stop_at if stop_at is not None else config.steps)
    if start >= stop_at:
        if not quiet:
            print(f"{workdir}: already trained to step {start}")
        checkpoints.close()
        return

    # --- Loop ----------------------------------------------------------------------------------------------
    ahead = _ahead(start, stop_at, config)
    judge = Judge(pipeline, program.loss, config, mesh, tokenizer) if ahead.intersection(_JUDGED) else None
    metrics = Metrics(workdir, start)
    watch = Watch(config.skip_nonfinite, lambda step: open_batches(config, "train", tokenizer).ids(step - 1))
    bar = tqdm(total=config.steps, initial=start, desc=f"train {workdir.name}", unit="step", disable=quiet)
    speed = Speed(
        began,
        config.batch_size,
        config.dtype,
        lambda: flops.of_step(config, pipeline, program.learns, batches.batch(start)),
    )
    stream = batches.iterate(start)
    with metrics, checkpoints, trace:
        if judge:
            # While there is nothing to lose: it compiles for minutes, and what is wrong with it is known at once.
            bar.set_postfix_str("judging what it starts from")
            judged = _judge(judge, ahead, state, stopping.unless_asked)
            _record(metrics, start, {what: found for what, found in judged.items() if what in _due(start, config)})
        bar.set_postfix_str("compiling the step")
        for step in range(start + 1, stop_at + 1):
            with speed.waiting():
                own_rows = next(stream)
            batch = meshes.to_global(own_rows, mesh, config.batch_size)
            trace.before_step()
            if step == start + 1:  # which is compiled now
                state, values = stopping.unless_asked(program.step, state, batch)
                stopping.started()
                bar.set_postfix_str("")
            else:
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, values = program.step(state, batch)
            watch.see(step, values)
            speed.stepped(values)
            if trace.after_step(values):
                speed.restart()
            bar.update()

            due = _due(step, config)
            if "log" in due:
                speeds = speed.report()
                written = metrics.write(step, {**values, **speeds})
                bar.set_postfix_str(_said(written, speeds))
            if judge and due.intersection(_JUDGED):
                watch.catch_up()
                # A stop does not wait for it, and the next start makes up for that; but the last step has none.
                how = stopping.unless_asked if step < config.steps else _at_once
                _record(metrics, step, _judge(judge, due, state, how))
            last = step == stop_at or stopping.agreed(step)
            if last or "checkpoint" in due:
                watch.catch_up()
                metrics.flush()  # what a state has done is written before it is kept, and never again after it
                checkpoints.save(state)
            if due.intersection((*_JUDGED, "checkpoint")):
                speed.restart()  # none of it is the step's time
            if last:
                break
    bar.close()
    if not quiet:
        print(f"{workdir}: at step {step} of {config.steps}" + ("; run again to go on" if step < config.steps else ""))


def _frozen(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters of the networks that a cache may stand in for, of a run that has a checkpoint, on the host."""
    found = interop.read(workdir, only=("vae", "text_encoder"), ema=False)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def _said(written: Mapping[str, float], speeds: Mapping[str, float]) -> str:
    """What the bar says: the loss that was written last, and the speed."""
    said = [f"loss {written['loss']:.4f}"] if "loss" in written else []
    return ", ".join(said + [f"{value:.1f} img/s" for name, value in speeds.items() if name == "images_per_second"])


def _due(step: int, config: ConfigDict) -> set[str]:
    """What is done at a step: each of `_EVERY` so many, and at the last; 0 is never."""
    last = step == config.steps
    return {what for what in _EVERY if (every := config[f"{what}_every"]) and (last or step % every == 0)}


def _ahead(start: int, last: int, config: ConfigDict) -> set[str]:
    """What is done at some step from `start` to `last`."""
    everies = {what: config[f"{what}_every"] for what in _EVERY}
    return {n for n, every in everies.items() if every and (last == config.steps or last // every * every >= start)}


def _judge(judge: Judge, due: set[str], state: State, do: Callable[..., Any]) -> dict[str, Any]:
    """The validation loss and the sheet of a state, as far as they are due, each as `do` makes it, or None."""
    ways = {"eval": judge.validate, "sample": judge.picture}
    return {what: do(ways[what], averaged(state)) for what in _JUDGED if what in due}


def _at_once(do: Callable[..., Any], *args: Any) -> Any:
    return do(*args)


def _record(metrics: Metrics, step: int, judged: Mapping[str, Any]) -> None:
    if judged.get("eval"):
        metrics.write(step, judged["eval"])
    if judged.get("sample") is not None:
        metrics.picture(step, judged["sample"])
