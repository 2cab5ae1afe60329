"""What a run says while it trains: a banner, a bar with loss and rate, and a line for whatever else it does."""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr.parallel import rules
from jaxcxr.training.program import Program

MANY = 100
"""Times that an image is seen, above which a run warns."""
SMOOTHED = 20
"""Steps whose mean loss the bar shows."""


class Progress:
    """The bar and the lines of a run, from the first process alone.

    A step's loss is read when the next one is under way, so that the device has work to do meanwhile.
    """

    def __init__(self, workdir: Path, steps: int, start: int, banner: Sequence[str] = ()):
        """Prints the lines of a banner, and draws the bar."""
        self._quiet = jax.process_index() > 0
        if banner and not self._quiet:
            print("\n".join(banner), flush=True)
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=f"train {workdir.name}",
            unit="step",
            disable=self._quiet,
            dynamic_ncols=True,
        )
        self._losses: deque[float] = deque(maxlen=SMOOTHED)
        self._pending: Any = None
        self._rate: float | None = None

    def doing(self, what: str) -> None:
        """Shows what is done before the first step."""
        self._bar.set_postfix_str(what)

    def stepped(self, values: Mapping[str, Any], images_per_second: float | None) -> None:
        """Takes the values of a step when it was dispatched, and the rate of the steps before."""
        if self._quiet:
            return
        self._take()
        self._pending, self._rate = values["loss"], images_per_second
        self._bar.set_postfix_str(self._said(), refresh=False)
        self._bar.update()

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            tqdm.write(text)

    def close(self) -> None:
        """Shows the loss and the rate of the last step, and ends the bar."""
        self._take()
        self._bar.set_postfix_str(self._said(), refresh=False)
        self._bar.close()

    def loss(self) -> float:
        """The mean of the last `SMOOTHED` losses that are known and finite, NaN without any."""
        finite = [loss for loss in self._losses if np.isfinite(loss)]
        return float(np.mean(finite)) if finite else float("nan")

    def _take(self) -> None:
        if self._pending is not None:
            self._losses.append(float(self._pending))
            self._pending = None

    def _said(self) -> str:
        said = [f"loss {self.loss():.4f}"] if self._losses else []
        return ", ".join(said + ([f"{self._rate:.1f} images/s"] if self._rate else []))


def banner(config: ConfigDict, program: Program, images: Mapping[str, int], start: int) -> list[str]:
    """The lines that a run begins with.

    Args:
      config: of the run.
      program: its step.
      images: that it reads, by split.
      start: the step that it starts from.
    """
    learnt = program.state["learnt"]
    mesh = next(iter(learnt.values())).sharding.mesh
    device, processes = jax.local_devices()[0], jax.process_count()
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    counts = [
        sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves.values())
        for leaves in (learnt, learnt | program.frozen)
    ]
    state, limit = bytes_of((program.state, program.frozen)), (device.memory_stats() or {}).get("bytes_limit")
    epochs = (config.steps - start) * config.batch_size / max(1, images["train"])
    lines = [
        f"devices: {mesh.size} {device.device_kind}"
        + (f" of {processes} processes" if processes > 1 else "")
        + (f" (mesh: {axes})" if axes else ""),
        "images: " + ", ".join(f"{split} {count}" for split, count in images.items()),
        f"parameters that learn: {counts[0]:,} of {counts[1]:,}",
        f"memory: a state of {state / 1e9:.3g} GB a device" + (f" of {limit / 1e9:.3g} GB" if limit else ""),
        f"steps: {start} to {config.steps}, of {config.batch_size} images ({epochs:.3g} epochs)",
    ]
    if config.steps * config.batch_size > MANY * images["train"]:
        seen = config.steps * config.batch_size / images["train"]
        lines.append(
            f"warning: each training image is seen {seen:.0f} times, and may be learnt by heart; fewer config.steps, or"
            " config.stopping.patience, would stop earlier"
        )
    lines += rules.warning(rules.unnamed(learnt | program.frozen, config.sharding))
    if config.batch_size > images["train"]:
        lines.append(
            f"warning: config.batch_size={config.batch_size} is more than the {images['train']} training images,"
            " so that a batch has some of them more than once; give a smaller one"
        )
    return lines


def bytes_of(state: Any) -> int:
    """Bytes of a tree of arrays or shapes on each device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
        if leaf.sharding.memory_kind != "pinned_host"
    )
