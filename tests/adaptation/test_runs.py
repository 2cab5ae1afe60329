"""Training runs that learn adapters: what they keep, and that a stop changes nothing."""

import json
import os

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr import interop
from jaxcxr.interop.orbax import read_learnt
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

LAYERS = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)|text_encoder\..*\.(q_proj|out_proj)"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("base") / "base")


def config_of(base, **changes) -> ConfigDict:
    """Of a run on the networks of `base` whose adapters alone learn."""
    config = runs.diffusion(base, **{"lora.rank": 2, "lora.alpha": 3.0, "lora.targets": LAYERS, **changes})
    for described in ("unet", "text_encoder", "scheduler"):
        config.model[described] = ConfigDict()
    config.model.measure_scaling_factor, config.trainable = False, ""
    config.ema_decay, config.optimizer.learning_rate = 0.5, 1e-2
    return config


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(base, **{"lora.dora": r"unet\..*"}), folder)
    return folder


def test_a_checkpoint_holds_the_adapter_alone(base, whole):
    files, learnt = read_learnt(whole)
    settings = json.loads(files["adaptation.json"])["lora"]
    assert settings == {"rank": 2, "alpha": 3.0, "targets": LAYERS, "dora": r"unet\..*"}
    assert {name.split(".", 1)[0] for name in learnt} == {"unet", "text_encoder"}
    assert all(name.endswith((".lora_A.kernel", ".lora_B.kernel", ".lora_magnitude_vector")) for name in learnt)
    assert all(np.abs(tensor.read()).max() > 0 for tensor in learnt.values()), "all of it learns"
    step = max(os.listdir(whole / "checkpoints"), key=int)
    # Parameters, their average, two moments of the optimizer and the mark of what is not finite.
    numbers = 4 * sum(tensor.nbytes for tensor in learnt.values())
    kept = sum(tensor.nbytes for name in ("params", "ema") for tensor in _item(whole, step, name).values())
    assert kept == numbers / 2
    assert sum(tensor.nbytes for tensor in interop.read(base).tensors.values()) > 5 * numbers


def _item(workdir, step, name):
    from jaxcxr.interop.orbax import read_item

    return read_item(workdir / "checkpoints" / step / name)


def test_a_workdir_is_read_with_its_adapter_merged(base, whole):
    found, before = interop.read(whole).tensors, interop.read(base).tensors
    assert found.keys() == before.keys()
    changed = {name for name, tensor in found.items() if (tensor.read() != before[name].read()).any()}
    learnt = read_learnt(whole)[1]
    assert changed == {name.replace(".lora_A.", ".") for name in learnt if ".lora_A." in name}


def test_a_run_that_was_stopped_is_the_same_bit_for_bit(base, whole, tmp_path):
    config = config_of(base, **{"lora.dora": r"unet\..*"})
    train(config, tmp_path / "run", stop_at=2)
    train(config, tmp_path / "run")
    for ema in (True, False):
        found, wanted = (read_learnt(folder, ema=ema)[1] for folder in (tmp_path / "run", whole))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name].read(), tensor.read(), name)
