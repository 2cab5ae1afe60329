import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.interop import published
from jaxcxr.interop.config_files import network_config
from jaxcxr.interop.pipeline import from_files
from jaxcxr.parallel import rules
from jaxcxr.parallel.mesh import make_mesh
from tests import pipelines
from tests.training import jobs, runs

ONE = {"data": -1, "fsdp": 1, "tensor": 1}


def test_a_mesh_takes_what_is_there():
    mesh = make_mesh(ONE)
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    for wrong in ({"fsdp": 3}, {"tensor": -1}, {"data": 0}):
        with pytest.raises(UserError, match=r"config\.mesh \(data="):
            make_mesh(ONE | wrong)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh is laid out by, of a chip that is not here."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (2, 1), (8, 1), (16, 1), (4, 2)])
def test_slices_lie_along_data_whatever_the_other_axes(fsdp, tensor):
    places = itertools.product(range(4), range(4), range(4))
    chips = [Chip(id, number, (x, y, 0)) for id, (number, y, x) in enumerate(places)]
    mesh = make_mesh({"data": -1, "fsdp": fsdp, "tensor": tensor}, chips)
    assert mesh.devices.shape == (64 // fsdp // tensor, fsdp, tensor)
    assert len(set(mesh.devices.flat)) == 64
    slices = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
    assert slices == [{number} for number in range(4) for _ in range(16 // fsdp // tensor)]
    with pytest.raises(UserError, match=r"config\.mesh\.data=2: is not a multiple of the 4 slices"):
        make_mesh({"data": -1, "fsdp": 32, "tensor": 1}, chips)


def test_fsdp_splits_the_largest_axis_and_moments_follow_their_parameter():
    mesh = AbstractMesh((2, 4, 1), ("data", "fsdp", "tensor"))
    shapes = {
        "learnt": {"unet.a.kernel": jax.ShapeDtypeStruct((3, 3, 320, 640), jnp.float32)},
        "opt_state": ({"mu": {"unet.a.kernel": jax.ShapeDtypeStruct((3, 3, 320, 640), jnp.float32)}},),
        "average": {"unet.a.bias": jax.ShapeDtypeStruct((640,), jnp.float32)},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    assert rules.split_largest((3, 3, 320, 640), mesh) == jax.P(None, None, None, "fsdp")
    assert rules.split_largest((1024, 511), mesh) == jax.P("fsdp")
    assert rules.split_largest((640,), mesh) == jax.P()
    found = rules.shard(shapes, "fsdp", mesh)
    assert found["opt_state"][0]["mu"]["unet.a.kernel"].spec == found["learnt"]["unet.a.kernel"].spec
    assert found["learnt"]["unet.a.kernel"].spec == jax.P(None, None, None, "fsdp")
    assert found["step"].spec == found["average"]["unet.a.bias"].spec == jax.P()


def test_unknown_strategies_are_told():
    with pytest.raises(UserError, match="no such strategy"):
        rules.shard({}, "zero", make_mesh(ONE))


@pytest.mark.parametrize("strategy", rules.STRATEGIES)
def test_every_parameter_of_the_networks_that_there_are_has_a_rule(strategy):
    files = [published.files(name) for name in published.NAMES.split(", ")]
    files.append({"text_encoder/config.json": network_config("text_encoder", {"model_type": "bert"})})
    names = {name for each in files for name in from_files(each).parameters()}
    names |= {f"{name.removesuffix('.kernel')}.lora_A.kernel" for name in names if name.endswith(".kernel")}
    assert len(names) > 1000
    assert rules.unnamed(names, strategy) == []


def test_a_parameter_without_a_rule_is_split_and_listed():
    mesh = AbstractMesh((1, 4, 1), ("data", "fsdp", "tensor"))
    new = {"unet.adapter.kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32)}
    assert rules.shard(new, "fsdp", mesh)["unet.adapter.kernel"].spec == jax.P("fsdp")
    assert rules.unnamed(new, "fsdp") == rules.unnamed(new, "fsdp+tensor") == list(new)
    assert rules.unnamed(new, "replicated") == []


def test_a_strategy_that_could_split_nothing_over_several_devices_is_told():
    axes = ("data", "fsdp", "tensor")
    with pytest.raises(UserError, match=r"ema_sharding='fsdp': nothing to split over, all 8 .* config\.mesh\.fsdp=8"):
        rules.shard({}, "fsdp", AbstractMesh((8, 1, 1), axes), key="ema_sharding")
    for sizes, strategy in (
        ((1, 1, 1), "fsdp"),
        ((1, 8, 1), "fsdp"),
        ((4, 1, 2), "fsdp+tensor"),
        ((8, 1, 1), "replicated"),
    ):
        assert rules.shard({}, strategy, AbstractMesh(sizes, axes)) == {}


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_devices_that_would_do_the_same_work_are_told(strategy):
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError, match=rf"mesh\.tensor=2: .* the same work under config\.sharding='{strategy}'"):
        rules.shard_state({"average": {}}, strategy, "", "device", mesh)
    rules.shard_state({"average": {}}, "fsdp+tensor", strategy, "device", mesh)


def test_patterns_match_whole_names():
    names = {"unet.a.kernel": 0, "unet.b.kernel": 0, "vae.unet.kernel": 0}
    assert rules.select(names, r"unet\..*") == {"unet.a.kernel", "unet.b.kernel"}
    with pytest.raises(UserError, match="no parameter has such a name"):
        rules.select(names, "unet")
    with pytest.raises(UserError, match="not a regular expression"):
        rules.select(names, "unet(")


ONE_LEVEL = {
    "block_out_channels": [32],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
CASES = [
    ((2, 1, 1), "replicated", {}),
    ((4, 1, 1), "replicated", {}),
    ((1, 2, 1), "fsdp", {"accumulation": 4}),
    ((1, 4, 1), "fsdp", {}),
    ((1, 8, 1), "fsdp", {}),
    ((1, 2, 2), "fsdp+tensor", {}),
    ((2, 2, 2), "fsdp+tensor", {}),
    ((2, 4, 1), "replicated", {"ema_sharding": "fsdp", "ema_memory": "host"}),
    ((1, 1, 2), "fsdp+tensor", {"accumulation": 4}),
]


def config(**changes):
    """A diffusion run of small networks that are all described."""
    config = configs.load(Path(__file__).parents[2] / "configs" / "base.py")
    with config.unlocked():
        config.model.vae = ConfigDict(pipelines.VAE)
        config.model.unet = ConfigDict({**pipelines.UNET, **ONE_LEVEL})
        config.model.text_encoder = ConfigDict({**pipelines.TEXT, "num_hidden_layers": 1})
        config.model.scheduler = ConfigDict(pipelines.SCHEDULER)
    config.trainable = r"unet\.(conv_in|mid_block|conv_out)\..*"  # some, since each takes time to compile
    config.data.path, config.data.size, config.batch_size = str(runs.data()), runs.SIZE, 8
    # Adam's first updates are of the gradient's sign, which rounding turns where it is next to nothing.
    config.optimizer.eps, config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-3, 1e-3, 0
    config.update_from_flattened_dict(changes)
    return config


def meshes_of(_):
    """As `tests.parallel.meshes` takes it."""
    return config(), CASES


@pytest.mark.slow
def test_a_step_is_the_same_on_any_mesh_under_every_strategy():
    argv = [sys.executable, "-m", "tests.parallel.meshes", "tests.parallel.test_parallel:meshes_of:"]
    done = subprocess.run(argv, env=jobs.environment(8), capture_output=True, text=True, check=False)
    assert "same everywhere" in done.stdout, done.stdout + done.stderr[-2000:]
