"""Prints the bytes that a plan for this CPU predicts and those by which the process grows."""

import ctypes
import gc
import json
import re
from pathlib import Path

import jax
import numpy as np

from jaxcxr.parallel import mesh as meshes
from jaxcxr.plan import compile as plans
from jaxcxr.plan.networks import describe
from jaxcxr.training.program import batch_shapes, make_program
from tests.plan import runs


def status(key):
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


config = runs.autoencoder(**{"data.size": 64, "batch_size": 4})
mesh = meshes.make_mesh(config.mesh)
pipeline = describe(config)
program, batch = make_program(config, pipeline, mesh), batch_shapes(config, pipeline, mesh)
compiled = program.step.lower(program.state, batch).compile()
state = plans._state_memory(program.state, batch)
predicted = sum(state.values()) + sum(plans._other_memory(compiled, state).values())

gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
values = jax.tree.map(
    lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), (program.state, batch)
)
jax.block_until_ready(compiled(*values))
print(json.dumps([predicted, status("VmHWM") - before]))
