"""A finished run, and copies of it to break."""

import shutil

import pytest

from jaxcxr.interop.orbax import steps
from jaxcxr.training.train import train
from tests.training.test_restarts import autoencoder


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run of 6 steps with checkpoints of 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(autoencoder(checkpoint_every=2), workdir)
    assert steps(workdir) == [6, 4]
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")
