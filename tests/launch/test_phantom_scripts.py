"""The scripts that train on drawn radiographs: every command of theirs runs, made tiny."""

import shlex

import pytest

from jaxcxr.__main__ import main
from tests.launch.commands import ROOT, calls, fake, run

pytestmark = pytest.mark.slow

SMALL = ["--config.data.size=16", "--config.steps=2", "--config.batch_size=4", "--config.eval_every=0"]
TINY = {
    "phantoms": ["--patients", "30", "--size", "64"],
    "prepare": ["--config.data.size=16"],
    "cache": ["--config.data.size=16"],
    "train": [*SMALL, "--config.checkpoint_every=2", "--config.sample_every=0", "--config.eval_batches=1"],
    "prompts": ["--count", "2"],
    "sample": ["--steps", "2", "--size", "16"],
    "evaluate": ["--config.data.size=64"],
}


def commands(tmp_path, script, *arguments):
    """What the script asks of `jaxcxr`, in order."""
    fake(tmp_path / "bin", "jaxcxr")
    done = run([ROOT / "launch" / script, *arguments], tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    return [words for _, *words in calls(tmp_path / "bin")]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("quickstart.sh", ["run"]),
        ("phantom.sh", [str(ROOT / "configs/phantom.py"), "run", "30", "2"]),
        ("bases.sh", ["run"]),
    ],
    ids=["quickstart", "phantom", "bases"],
)
def test_every_command_runs_and_runs_again(tmp_path, monkeypatch, script, arguments):
    monkeypatch.chdir(tmp_path)
    asked = commands(tmp_path, script, *arguments)
    (tmp_path / "run").mkdir(exist_ok=True)
    for verb, *words in asked:
        assert main([verb, *words, *TINY.get(verb, [])]) == 0, shlex.join([verb, *words])
    for verb, *words in asked:
        if verb != "convert":  # which the scripts ask for once
            assert main([verb, *words, *TINY.get(verb, [])]) == 0, f"again: {shlex.join([verb, *words])}"


def test_the_card_of_a_base_names_no_path_whatever_the_path(tmp_path):
    folder = tmp_path / "a|b & [c].*" / "run"
    readme = "# Base\nData: state here what it was.\nFrom `@/autoencoder`, and not from ab.\n".replace("@", str(folder))
    card = folder / "bases" / "phantom-unnamed" / "README.md"
    code = f"""if [ "$1" = convert ]; then mkdir -p "$3" && printf %s {shlex.quote(readme)} >"$3/README.md"; fi"""
    fake(tmp_path / "bin", "jaxcxr", code)
    folder.mkdir(parents=True)
    done = run([ROOT / "launch" / "bases.sh", str(folder), "phantom-unnamed"], tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    said = "Data: drawn radiographs alone, of no patient. Trained by `launch/bases.sh RUN phantom-unnamed`."
    assert card.read_text() == f"# Base\n{said}\nFrom `RUN/autoencoder`, and not from ab.\n"


def test_a_base_that_does_not_exist_is_refused(tmp_path):
    done = run([ROOT / "launch" / "bases.sh", str(tmp_path), "fantom"])
    assert done.returncode == 2
    assert "phantom-no-effusion" in done.stderr
    assert not list(tmp_path.iterdir())
