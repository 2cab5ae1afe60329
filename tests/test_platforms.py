import importlib.metadata
import os
import subprocess
import sys

import pytest

from jaxcxr import platforms


def test_compilers_for_other_hardware_are_not_heard_of():
    """With both extras installed JAX starts on the CPU and says nothing."""
    for package in ("libtpu", "jax-cuda12-pjrt"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    code = "from jaxcxr import platforms; platforms.only_those_here(); import jax; print(jax.default_backend())"
    clean = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("cpu", "gpu", "tpu")


def test_what_is_set_stays(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delitem(sys.modules, "jax_plugins.xla_cuda12", raising=False)
    platforms.only_those_here()
    assert os.environ["JAX_PLATFORMS"] == "cuda"
    assert "jax_plugins.xla_cuda12" not in sys.modules
