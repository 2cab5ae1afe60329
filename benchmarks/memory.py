"""The memory that a plan predicts for a run on this CPU, and that by which the process grows at a step of it.

    python benchmarks/memory.py [RUN]

Each run is a process of its own, on Linux alone. Writes benchmarks/results/memory-DATE.json, or for one RUN prints the
bytes of plan and process.
"""

import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import record

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxcxr import platforms  # noqa: E402

platforms.only_those_here()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxcxr.parallel import mesh as meshes  # noqa: E402
from jaxcxr.plan import compile as plans  # noqa: E402
from jaxcxr.plan.networks import describe  # noqa: E402
from jaxcxr.training.program import batch_shapes, make_program  # noqa: E402
from tests.plan.runs import autoencoder, diffusion  # noqa: E402

RUNS = {
    "autoencoder": autoencoder(**{"data.size": 64, "batch_size": 8}),
    "autoencoder, bfloat16": autoencoder(**{"data.size": 64, "batch_size": 4, "dtype": "bfloat16"}),
    "autoencoder, accumulation=4": autoencoder(**{"data.size": 64, "batch_size": 8, "accumulation": 4}),
    "diffusion": diffusion(**{"data.size": 32, "batch_size": 64}),
}


def measure(run: str) -> tuple[int, int]:
    """Bytes that the plan of a run predicts, and those by which this process grows."""
    config = RUNS[run]
    mesh = meshes.make_mesh(config.mesh)
    pipeline = describe(config)
    program = make_program(config, pipeline, mesh)
    batch = batch_shapes(config, pipeline, mesh, program.learns)
    compiled = program.step.lower(program.state, program.frozen, batch).compile()
    state = plans._state_memory(program, batch)
    predicted = sum(state.values()) + sum(plans._other_memory(compiled, state).values())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    values = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        (program.state, program.frozen, batch),
    )
    jax.block_until_ready(compiled(*values))
    return predicted, _status("VmHWM") - before


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
        return
    for run in RUNS:
        done = subprocess.run([sys.executable, __file__, run], capture_output=True, text=True, check=True)
        predicted, real = json.loads(done.stdout.splitlines()[-1])
        found = {"planned_mb": round(predicted / 1e6, 1), "real_mb": round(real / 1e6, 1)}
        record.write("memory", ("jax", "jaxlib"), {run: found | {"real_by_planned": round(real / predicted, 3)}})


if __name__ == "__main__":
    main()
