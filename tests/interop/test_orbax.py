"""Orbax checkpoints are read on one device, wherever they were written."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import network_config
from jaxcxr.interop.pipeline import write_files
from tests import pipelines

# A state split over eight devices as training splits it; averages are the weights plus one.
WRITE = """
import sys
from pathlib import Path
import jax, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxcxr.interop.orbax import write_frozen
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.step import init_state

rng = np.random.default_rng(0)
weights = {line.split()[0]: rng.standard_normal(eval(line.split(maxsplit=1)[1]), np.float32) for line in sys.stdin}
learnt = {name: value for name, value in weights.items() if name.startswith("unet.")}
frozen = {name: value for name, value in weights.items() if name not in learnt}
state = init_state(learnt, optax.adamw(1e-3))
state["average"] = {name: value + 1 for name, value in state["average"].items()}
mesh = meshes.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})

def split(value):
    axis = next((axis for axis, size in enumerate(value.shape) if size % 8 == 0), None)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp") if axis is not None else PartitionSpec())

state = jax.device_put(state, jax.tree.map(split, state))
checkpoints = Checkpoints(Path(sys.argv[1]), 1)
write_frozen(Path(sys.argv[1]), frozen)
checkpoints.save(state)
checkpoints.close()
"""
FILES = {
    "unet/config.json": network_config("unet", pipelines.UNET),
    "vae/config.json": network_config("vae", pipelines.VAE),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir written on eight devices, and its weights."""
    folder = tmp_path_factory.mktemp("run")
    write_files(folder / "model", FILES)
    shapes = {name: value.shape for name, value in interop.pipeline.from_files(FILES).parameters().items()}
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=1", "device_count=8")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, folder],
        input="\n".join(f"{name} {shape}" for name, shape in shapes.items()),
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rng = np.random.default_rng(0)
    return folder, {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("ema", [True, False])
def test_eight_devices_wrote_it_and_one_reads_it(workdir, ema):
    folder, weights = workdir
    found = interop.read(folder, ema=ema).tensors
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert (found[name].read() == value + (ema and name.startswith("unet."))).all(), name


@pytest.mark.parametrize("ema", [True, False])
def test_networks_are_made_of_it(workdir, ema):
    folder, weights = workdir
    parameters = interop.load(folder, only=("vae",), ema=ema).parameters()
    assert set(parameters) == {name for name in weights if name.startswith("vae.")}
    assert all((np.asarray(value) == weights[name]).all() for name, value in parameters.items())


def test_a_folder_without_a_complete_step_is_told(tmp_path):
    write_files(tmp_path / "model", FILES)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-0").mkdir(parents=True)
    with pytest.raises(UserError, match="no complete checkpoint"):
        interop.read(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_a_full_disk_is_told_and_leaves_nothing(workdir, tmp_path, full_disk):
    checkpoint = interop.read(workdir[0])
    with full_disk(), pytest.raises(UserError, match="out: cannot be written .File too large"):
        interop.orbax.write(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_on_the_way_is_one_line(workdir, tmp_path):
    """Many tensors cannot be written, and what native code prints counts."""
    convert = [sys.executable, "-m", "jaxcxr", "convert", workdir[0], tmp_path / "out", "--to", "orbax"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *convert],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    said = f"{tmp_path / 'out'}: cannot be written (File too large); nothing was left there"
    assert done.stderr == f"jaxcxr convert: {said}\n"
    assert not list(tmp_path.iterdir())
