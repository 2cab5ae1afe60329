"""What holds of every way to adapt a base: the same run on any mesh, and after kills."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.adaptation import methods
from tests.training import jobs, kills

pytestmark = pytest.mark.slow

MESHES = [
    ((2, 1, 1), "replicated", {"accumulation": 2}),
    ((4, 1, 1), "replicated", {}),
    ((1, 2, 1), "fsdp", {}),
    ((2, 2, 1), "fsdp", {}),
    ((1, 1, 2), "fsdp+tensor", {}),
    ((1, 2, 2), "fsdp+tensor", {}),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return methods.write_source(tmp_path_factory.mktemp("methods"))


def meshes_of(argument):
    """As `tests.parallel.meshes` takes it: of NAME@SOURCE."""
    name, source = argument.split("@", 1)
    config = methods.config_of(name, Path(source))
    # A discriminator has norms of the whole batch.
    cases = [(*where, {} if "adversarial" in config.objective.perceptual else changes) for *where, changes in MESHES]
    return config, cases


# Prior preservation is another mixture of the same step.
@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "dreambooth"])
def test_a_step_is_the_same_on_any_mesh(source, name):
    case = f"tests.adaptation.test_every_method:meshes_of:{name}@{source}"
    argv = [sys.executable, "-m", "tests.parallel.meshes", case]
    done = subprocess.run(argv, env=jobs.environment(4), capture_output=True, text=True, check=False)
    assert "same everywhere" in done.stdout, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(name) == len(MESHES)


@pytest.mark.parametrize("name", methods.METHODS)
def test_killed_five_times_a_run_ends_as_one_that_never_was(source, tmp_path, monkeypatch, name):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    kills.assert_nothing_is_lost(methods.config_of(name, source, tmp_path / "prior"), 5, tmp_path)
