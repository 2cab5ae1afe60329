"""The wheel, installed by itself: the configs, a base, a training and a conversion, from an empty folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.test_documented_commands import TINY

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"


def _build(kind: str, source: Path, out: Path) -> Path:
    """A wheel or an sdist of the sources, by setuptools as it is here, so that nothing is fetched."""
    out.mkdir(exist_ok=True)
    code = BUILD.format(kind=kind, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def _contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, but for its own list of them."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("RECORD")}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A wheel built of the sources, and one built of an sdist of them."""
    pytest.importorskip("setuptools", "77", reason="the wheel is built by setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("jaxcxr", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    sdist = _build("sdist", source, folder / "sdist")
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return _build("wheel", source, folder / "wheel"), _build("wheel", unpacked, folder / "of-sdist")


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """Runs words by the Python of a venv that has the wheel, in an empty folder; what the wheel needs is the tests'."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python, empty = folder / "venv" / "bin" / "python", folder / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAX_PLATFORMS")}
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheels[0]]
    subprocess.run(pip, check=True, env=clean)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # After the wheel, and without the .pth files there, which may name a clone.
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run([python, *words], cwd=empty, env=clean, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    run.folder = empty
    return run


def test_the_sdist_builds_the_same_wheel(wheels):
    ours, again = map(_contents, wheels)
    assert ours == again
    shipped = {name.removeprefix("jaxcxr/") for name in ours if name.startswith("jaxcxr/configs/")}
    assert shipped == {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.py")}


def test_configs_are_found_by_name_in_an_empty_folder(installed):
    where = installed("-c", "import jaxcxr.config as c; print(c.FOLDER)").stdout
    assert "site-packages/jaxcxr/configs" in where
    listed = installed("-m", "jaxcxr", "configs").stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {"roentgen", "bases", "evaluation/dewilde"}
    load = "import sys; from jaxcxr import config as c; [c.load(n) for n in sys.argv[1:]]"
    names = [line.split()[0] for line in listed.splitlines()]
    installed("-c", load, *names, "roentgen:v5e-16", "configs/bases.py:phantom")
    assert installed("-m", "jaxcxr", "--version").stdout.startswith("jaxcxr 0.")


def test_a_printed_config_is_one_to_start_from(installed):
    for number, name in enumerate(("finetune", "scaling/weak")):
        text = installed("-m", "jaxcxr", "configs", name).stdout
        (installed.folder / f"mine{number}.py").write_text(text)
        installed("-c", f"from jaxcxr import config as c; c.load('mine{number}.py')")


@pytest.mark.slow
def test_samples_a_training_and_a_conversion(installed):
    """Ten steps of a config by its name, on a base by its name."""
    jaxcxr = ("-m", "jaxcxr")
    asked = ("--prompt", "No pleural effusion.", "--out", "samples", "--steps", "2")
    installed(*jaxcxr, "sample", "--checkpoint", "phantom", *asked)
    assert list(installed.folder.glob("samples/*.png"))
    installed(*jaxcxr, "phantoms", "--out", "tree", "--patients", "40", "--size", "64")
    installed(*jaxcxr, "prepare", "--config", "quickstart", "--source", "tree", "--out", "data")
    few = [word for word in TINY["train"] if not re.match(r"--config\.(data\.size|steps)", word)]
    words = ("--config", "quickstart", "--workdir", "run", "--config.data.path=data", *few, "--config.steps=10")
    installed(*jaxcxr, "train", *words, "--config.optimizer.warmup_steps=2")
    installed(*jaxcxr, "convert", "run", "out", "--to", "diffusers")
    assert (installed.folder / "out" / "model_index.json").is_file()


def test_nothing_is_said_of_plugins_that_are_not_in_use(installed):
    for code in ("import jaxcxr, jax; jax.devices()", "import jax, jaxcxr; jax.devices()"):
        assert installed("-c", code).stderr == ""


def test_every_package_that_is_imported_is_named_in_pyproject():
    """What the code imports is a dependency, or one of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    named = {re.split(r"[^A-Za-z0-9_.-]", each)[0].lower().replace("-", "_") for each in asked}
    names = {"PIL": "pillow", "orbax": "orbax_checkpoint", "jaxlib": "jax", "tensorboardX": "tensorboardx"}
    absent = {}
    for file in (ROOT / "jaxcxr").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            found = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {each.partition(".")[0] for each in found} - {"jaxcxr", "__future__"}:
                if top not in sys.stdlib_module_names and names.get(top, top) not in named:
                    absent.setdefault(top, file.name)
    assert not absent
