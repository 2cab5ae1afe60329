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


def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path):
    for number, (vendor, kind) in enumerate((("0x10de", "0x0c0330"), ("0x8086", "0x030000"))):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(vendor + "\n")
        (tmp_path / str(number) / "class").write_text(kind + "\n")
    assert not platforms._has_nvidia_card(tmp_path)
    (tmp_path / "1" / "vendor").write_text("0x10de\n")
    assert platforms._has_nvidia_card(tmp_path)


def test_the_cuda_compiler_can_be_had_again(monkeypatch):
    name = "jax_plugins.xla_cuda12"
    monkeypatch.setitem(sys.modules, name, type(sys)(name))
    platforms.with_cuda_compiler()
    assert name not in sys.modules
