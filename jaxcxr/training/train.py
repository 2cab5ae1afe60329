"""The train loop; every run is this one, read from top to bottom."""

import signal
import time
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr import interop
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.interop.diffusers import read_files
from jaxcxr.interop.orbax import MODEL
from jaxcxr.interop.pipeline import from_files
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.checkpoint import Checkpoints, check_workdir, claim
from jaxcxr.training.feed import check_cache, open_batches, some_images, tokenizer_folder
from jaxcxr.training.judge import Judge
from jaxcxr.training.metrics import Metrics
from jaxcxr.training.model import compute_dtype, make_model, with_scaling_factor
from jaxcxr.training.objectives import measure_scaling_factor
from jaxcxr.training.program import make_program
from jaxcxr.training.step import averaged


def train(config: ConfigDict, workdir: Path, stop_at: int | None = None) -> None:
    """Trains in `workdir`, or goes on where it stopped, to `config.steps`.

    Args:
      config: as in `configs/base.py`.
      workdir: holds this config's run or nothing; gets `config.json`, `model/`, `checkpoints/`,
        `metrics.jsonl`, `tensorboard/` and `samples/`.
      stop_at: saves and returns at this step, as SIGTERM and Ctrl-C do at theirs.

    Raises:
      UserError: config, data, base checkpoint or workdir will not do; nothing is overwritten.
      FloatingPointError: the loss is not finite.
    """
    # --- Devices and data -------------------------------------------------------------------------------
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
    tokenizer = load_tokenizer(tokenizer_folder(config))
    check_workdir(workdir, config)
    first_time = not (workdir / MODEL).is_dir()

    # --- Model: described by the config the first time, by the workdir from then on ----------------------
    dtype, key = compute_dtype(config), jax.random.key(config.seed)
    if first_time:
        pipeline, parameters = make_model(config, key)
        if config.model.measure_scaling_factor:
            factor = measure_scaling_factor(pipeline, parameters, some_images(config, tokenizer, 256))
            pipeline = with_scaling_factor(pipeline, factor, dtype)
    else:
        pipeline = from_files(read_files(workdir / MODEL), dtype)
        parameters = None
    tokenizer = pipeline.tokenizer if "text_encoder" in pipeline.networks else tokenizer
    batches = open_batches(config, "train", tokenizer, rows=meshes.local_rows(mesh, config.batch_size))
    program = make_program(config, pipeline, mesh)

    # --- State: restored, or made anew --------------------------------------------------------------------
    checkpoints = Checkpoints(workdir, config.keep)
    if checkpoints.latest() is not None:
        state = checkpoints.restore(program.state)
    else:
        if parameters is None:  # stopped before the first checkpoint: the same seed gives the same weights
            _, parameters = make_model(config, key)
        state = program.init(parameters)
    if config.data.cache:
        check_cache(config, pipeline, program.learns, parameters if parameters is not None else _frozen(workdir))
    claim(workdir, config, pipeline.files if first_time else None)
    del parameters
    start = int(state["step"])
    stop_at = min(config.steps, stop_at if stop_at is not None else config.steps)
    if start >= stop_at:
        print(f"{workdir}: already trained to step {start}")
        checkpoints.close()
        return

    # --- Loop ----------------------------------------------------------------------------------------------
    judge = Judge(pipeline, program.loss, config, mesh, tokenizer) if config.eval_every or config.sample_every else None
    metrics = Metrics(workdir, start)
    stopping = _on_signal()
    quiet = jax.process_index() > 0
    bar = tqdm(total=config.steps, initial=start, desc=f"train {workdir.name}", unit="step", disable=quiet)
    since, since_step, waited = time.perf_counter(), start, 0.0
    stream = batches.iterate(start)
    for step in range(start + 1, stop_at + 1):
        asked = time.perf_counter()
        batch = meshes.to_global(next(stream), mesh, config.batch_size)
        waited += time.perf_counter() - asked
        state, values = program.step(state, batch)
        bar.update()
        last = step == stop_at or bool(stopping)
        keep = last or _due(step, config.checkpoint_every, config.steps)

        if keep or _due(step, config.log_every, config.steps):
            jax.block_until_ready(values)
            seconds = time.perf_counter() - since
            rate = (step - since_step) * config.batch_size / seconds
            metrics.write(step, {**values, "images_per_second": rate, "data_wait": waited / seconds})
            bar.set_postfix_str(f"loss {float(values['loss']):.4f}, {rate:.1f} img/s")
            since, since_step, waited = time.perf_counter(), step, 0.0
        judged = _due(step, config.eval_every, config.steps), _due(step, config.sample_every, config.steps)
        if judge and judged[0]:
            metrics.write(step, judge.validate(averaged(state)))
        if judge and judged[1]:
            metrics.picture(step, "samples", judge.picture(averaged(state), workdir / "samples" / f"{step:08d}.png"))
        if keep:
            metrics.flush()  # a loss that is not finite stops the run before its state is kept
            checkpoints.save(state)
        if any(judged):
            since, since_step, waited = time.perf_counter(), step, 0.0  # judging is not the step's time
        if last:
            break
    bar.close()
    metrics.close()
    checkpoints.close()
    print(f"{workdir}: at step {step} of {config.steps}" + ("; run again to go on" if step < config.steps else ""))


def _frozen(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters of the networks that a cache may stand in for, of a run that has a checkpoint, on the host."""
    found = interop.read(workdir, only=("vae", "text_encoder"), ema=False)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def _due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps, and at the last, is due; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)


def _on_signal() -> list[int]:
    """A list that gets the signal when SIGTERM (preemption) or SIGINT (Ctrl-C) asks the run to stop."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt  # asked twice: now
        caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return caught
