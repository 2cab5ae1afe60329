"""Compiles a run's train step for a target and says what it takes.

    python -m jaxcxr.plan.compile < REQUEST

answers the requests of `jaxcxr.plan.apart`, in lines of JSON.
"""

import collections
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.parallel import rules
from jaxcxr.parallel.chips import GIB
from jaxcxr.parallel.mesh import make_mesh
from jaxcxr.plan import hlo, live, targets
from jaxcxr.plan.networks import describe
from jaxcxr.plan.targets import Target
from jaxcxr.training import flops
from jaxcxr.training.program import Program, batch_shapes, make_program


def measure(
    config: ConfigDict, target: Target, *, sharding_only: bool = False, stage: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """What the train step takes, as plain values; in a process that has the target's `environment`.

    Returns:
      `sharding`: a list of {name, shape, dtype, spec, and bytes a chip: weights, optimizer, ema} of the parameters;
      `unnamed`, those of them that no rule of the strategy names.
      Unless `sharding_only` also `target`, `chips`, `mesh`, `batch_size`, `dtype`; `limit`, the bytes a chip has, None
      for a CPU; `memory` in bytes a chip (weights, frozen, optimizer, ema, batch, padding, temporaries, program; the
      last three are missing where the compiler gave up); `alive`, of the temporaries, as of `live.at_peak`; `donated`,
      the bytes of results that lie where the state was; `moved`, those that a chip reads and writes, as of `hlo.moved`;
      `over`, the bytes by which it does not fit, or 0; `flops` of a step (`model`, the work asked for; `traced`, with
      what
      remat and attention do again) and a chip's as the `compiler` counts; `collectives` as of `hlo.by_kind`;
      `gradients` in bytes a chip; `seconds` by stage.

    Raises:
      UserError: a mistake in the config, found before anything is compiled.
    """
    seconds = _Seconds(stage)
    seconds.begin("networks")
    devices = targets.devices(target)
    mesh = make_mesh(config.mesh, devices)
    pipeline = describe(config)
    program = make_program(config, pipeline, mesh)
    batch = batch_shapes(config, pipeline, mesh, program.learns)
    sharding = _sharding_table(program)
    unnamed = rules.unnamed((row["name"] for row in sharding), config.sharding)
    if sharding_only:
        return {"sharding": sharding, "unnamed": unnamed}
    seconds.begin("trace")
    with targets.pretended(target):
        traced = program.step.trace(program.state, program.frozen, batch)
        work: dict[str, float | None] = {"model": flops.of_step(config, pipeline, program.adaptation, batch)}
        work["traced"] = flops.of_jaxpr(traced.jaxpr)
        seconds.begin("lower")
        lowered = traced.lower()
    seconds.begin("compile")
    compiled, over = _compile(lowered, target, _OPTIONS[target.platform])
    memory, collectives, donated = _state_memory(program, batch), {}, 0
    alive, moved = None, None
    if compiled is not None:
        memory |= _other_memory(compiled, memory)
        over = max(0, sum(memory.values()) - target.chip.memory)
        work["compiler"] = (compiled.cost_analysis() or {}).get("flops")
        place = {device.id: index // (target.chips // target.slices) for index, device in enumerate(devices)}
        nodes = [place[device.id] for device in mesh.devices.flat]
        text = compiled.as_text()
        collectives = hlo.by_kind(hlo.collectives(text, nodes))
        alive, moved = _read(text, live.at_peak), _read(text, hlo.moved)
        donated = compiled.memory_analysis().alias_size_in_bytes
    return {
        "target": target.name,
        "chips": target.chips,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "limit": None if target.platform == "cpu" else target.chip.memory,
        "sharding": sharding,
        "unnamed": unnamed,
        "memory": memory,
        "alive": alive,
        "donated": donated,
        "moved": moved,
        "over": over,
        "flops": work,
        "collectives": collectives,
        # As those parameters lie, wherever their average does.
        "gradients": _bytes(program.state["learnt"]),
        "seconds": seconds.end(),
    }


class _Seconds:
    """The time of each stage, printed as it begins."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self._began: dict[str, float] = {}

    def begin(self, name: str) -> None:
        self._tell(name)
        self._began[name] = time.perf_counter()

    def end(self) -> dict[str, float]:
        times = [*self._began.values(), time.perf_counter()]
        return {name: round(b - a, 1) for name, a, b in zip(self._began, times, times[1:], strict=False)}


# What a plan asks of each compiler.
_OPTIONS: dict[str, dict[str, Any]] = {
    # Autotuning times kernels, for which it would need the GPU; Triton's matrix products are not to be had without it.
    "cuda": {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False},
    # The first tiling of a convolution will do: looking for the best is most of a compile, and takes no HBM.
    "tpu": {"xla_jf_convolution_performance_target": 0.1},
    "cpu": {},
}


def _compile(lowered: Any, target: Target, options: Mapping[str, Any]) -> tuple[Any, int]:
    """The compiled step; or None, and the bytes by which it does not fit, where libtpu refuses it for that."""
    try:
        return lowered.compile(compiler_options=dict(options)), 0
    except jax.errors.JaxRuntimeError as error:
        if options and "No such compile option" in str(error):  # in another version of the compiler
            return _compile(lowered, target, {})
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _exceeded(str(error), target.chip.memory)


def _exceeded(message: str, limit: int) -> int:
    """The bytes by which a program does not fit, as libtpu's error tells."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    for pattern, more in (
        (r"[Ee]xceed\w* hbm capacity by ([\d.]+)([KMGT]?)", 0),
        (r"\(([\d.]+)([KMGT]?)\) exceeds", limit),
    ):
        if match := re.search(pattern, message):
            return max(1, int(float(match[1]) * units[match[2]]) - more)
    return 1


def _state_memory(program: Program, batch: Any) -> dict[str, int]:
    """Bytes a chip of the state, of what does not learn and of the batch, by kind."""
    return {
        "weights": _bytes(program.state["learnt"]),
        "frozen": _bytes(program.frozen),
        "optimizer": _bytes(program.state["opt_state"]),
        "ema": _bytes(program.state["average"]),
        "batch": _bytes(batch),
    }


def _other_memory(compiled: Any, state: Mapping[str, int]) -> dict[str, int]:
    """Bytes a chip of what the compiler adds: layouts' padding, temporaries (activations, gradients), the program."""
    stats = compiled.memory_analysis()
    return {
        "padding": max(0, stats.argument_size_in_bytes - sum(state.values())),
        "temporaries": stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def _read(text: str, what: Callable[[str], Any]) -> Any:
    """`what` of a program's text, or None: no version of a compiler promises what it prints."""
    try:
        return what(text)
    except (LookupError, TypeError, ValueError):
        return None


def _bytes(tree: Any) -> int:
    """Bytes of a chip's part of a tree of shapes, less what waits in the host's memory."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def _sharding_table(program: Program) -> list[dict[str, Any]]:
    """Where every parameter lies, and what its moments and average take."""
    state = program.state
    moments: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state["opt_state"])[0]:
        moments[rules.parameter_of(path)] += _bytes(leaf)
    return [
        {
            "name": name,
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "spec": [list(axis) if isinstance(axis, tuple) else axis for axis in leaf.sharding.spec],
            "weights": _bytes(leaf),
            "optimizer": moments[name],
            "ema": _bytes(state["average"].get(name, ())),
        }
        for name, leaf in (state["learnt"] | program.frozen).items()
    ]


def _answer() -> None:
    """Reads one request and answers; only JSON goes to the standard output, whatever the compilers print."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=out, flush=True)

    request = json.load(sys.stdin)
    config = ConfigDict(_tuples(request["config"]))
    try:
        target = targets.parse(request["target"])
        found = measure(config, target, sharding_only=request["sharding_only"], stage=lambda name: say(stage=name))
    except UserError as error:
        say(error=str(error))
    else:
        say(result=found)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs are written with."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    _answer()
