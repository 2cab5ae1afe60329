"""What holds for every script of `launch/`."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from jaxcxr import config as configs
from jaxcxr.plan.networks import describe
from jaxcxr.training import ranges
from tests.launch.commands import ROOT, run

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/gke/*.sh")])
RUN = [script for script in SCRIPTS if script.name != "flags.sh"]
names = {"ids": lambda script: script.name}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    done = run(["shellcheck", "-x", *SCRIPTS])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", RUN, **names)
def test_help_tells_how_with_an_example(script):
    asked, wrong = run([script, "--help"]), run([script])
    assert (asked.returncode, wrong.returncode) == (0, 2)
    name = str(script.relative_to(ROOT))
    assert asked.stdout.count(name) >= 2  # the form, and an example
    assert "SBATCH" not in asked.stdout
    assert name in wrong.stdout + wrong.stderr


def trainings() -> list[str]:
    """What the scripts' examples and their documentation train, a line each."""
    files = [ROOT / "docs" / "scale.md", *SCRIPTS]
    text = "\n".join(file.read_text().replace("\n#", "\n") for file in files)
    return re.findall(r"train (--config \S+\.py.*)", re.sub(r"\\\n\s*", "", text))


@pytest.mark.parametrize("options", sorted(set(trainings())))
def test_what_the_examples_train_is_a_run_that_can_be_planned(options):
    # A plan reads no bucket: what lies in one is named as if it were mounted.
    _, file, *overrides = shlex.split(options.replace("gs://my-bucket", "/mnt/jaxcxr"))
    config = configs.load(ROOT / file, [each for each in overrides if each.startswith("--config.")])
    ranges.check(config)
    assert set(describe(config).networks) >= {"vae"}


def flags(kind: str, variable: str, **environment) -> str:
    done = run(["bash", "-c", f'source launch/flags.sh {kind}; echo "${variable}"'], **environment)
    assert done.returncode == 0
    return done.stdout.strip()


def test_your_own_flags_come_last():
    assert flags("gpu", "XLA_FLAGS", XLA_FLAGS="--mine=1").endswith("=true --mine=1")
    assert flags("tpu", "LIBTPU_INIT_ARGS", LIBTPU_INIT_ARGS="--mine=1").endswith("=true --mine=1")


def test_xla_knows_the_flags_for_gpus():
    environment = {**os.environ, "XLA_FLAGS": flags("gpu", "XLA_FLAGS", XLA_FLAGS=""), "JAX_PLATFORMS": "cpu"}
    for extra, fine in (("", True), (" --xla_gpu_no_such_flag=1", False)):
        environment["XLA_FLAGS"] += extra
        argv = [sys.executable, "-c", "import jax; jax.devices()"]
        assert (subprocess.run(argv, env=environment, capture_output=True).returncode == 0) is fine


def test_libtpu_knows_the_flags_for_tpus():
    from jax._src.cloud_tpu_init import get_tpu_library_path

    if get_tpu_library_path() is None:
        pytest.skip("libtpu is not installed")
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags("tpu", "LIBTPU_INIT_ARGS", LIBTPU_INIT_ARGS="")}
    environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    code = "from jax.experimental import topologies as t; t.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    for extra, fine in (("", True), (" --xla_tpu_no_such_flag=1", False)):
        environment["LIBTPU_INIT_ARGS"] += extra
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=240)
        assert (done.returncode == 0) is fine
