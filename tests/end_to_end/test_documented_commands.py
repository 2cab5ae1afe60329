"""Every command of README and docs, in the order in which they stand, on networks and data made tiny."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxcxr import config as configs
from jaxcxr.__main__ import VERBS, main
from tests import pipelines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Words of commands that are tested elsewhere: they take other files, or many compilations.
ELSEWHERE = {
    "--beam": "tests/data/test_shards.py",
    "--sweep": "tests/plan/test_sweep.py",
    "--scaling": "tests/plan/test_sweep.py",
    "v2-1_768-ema-pruned.ckpt": "tests/interop/test_single_file.py",
    "folder-with-msgpack": "tests/interop/test_flax_legacy.py",
}
OTHER_PROGRAMS = {
    *("make", "python", "python3", "pip", "docker", "gcloud", "xpk", "sbatch", "jaxcxr…"),
    *("launch/local.sh", "launch/tpu_vm.sh", "launch/gke/jobset.sh", "launch/gke/xpk.sh"),  # tests/launch
    "launch/bases.sh",  # tests/launch
}
TINY = {
    "configs": [],
    "phantoms": ["--patients", "40"],
    "prepare": ["--config.data.size=16", "--config.data.tokenizer_vocab=600"],
    "cache": ["--config.data.size=16", "--config.batch_size=4", "--config.dtype=float32"],
    "train": [
        *("--config.data.size=16", "--config.batch_size=4", "--config.steps=2", "--config.accumulation=1"),
        *("--config.dtype=float32", "--config.mesh.fsdp=1", "--config.sharding=replicated"),
        *("--config.eval_every=2", "--config.eval_batches=1", "--config.checkpoint_every=2"),
        *("--config.sample_every=2", "--config.samples.per_prompt=1", "--config.samples.steps=2"),
    ],
    "plan": ["--config.data.size=16", "--config.batch_size=64"],
    "sample": ["--steps", "2", "--batch-size", "1"],
    "prompts": ["--count", "2"],
    "convert": [],
    "evaluate": [],
    "reconstruct": ["--phantoms", "2"],
    "study": [],
    "readers": ["--count", "2", "--repeats", "0"],
    "probe": [],
}


def documented() -> list[tuple[str, list[str]]]:
    """(where, words) of every `jaxcxr VERB …` in a fenced block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if not words:
                    continue
                if words[0] == "jaxcxr":
                    found.append((page.name, words[1:]))
                elif words[0].startswith("--config."):  # a line to add to a command
                    configs.load(ROOT / "configs" / "base.py", words)
                else:
                    assert words[0] in OTHER_PROGRAMS, f"{page.name}: {line}: is this tested?"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the pages take as given: a MIMIC-CXR tree, a tokenizer, a base and a mask."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "configs").symlink_to(ROOT / "configs")
    assert main(["phantoms", "--out", str(folder / "MIMIC"), "--patients", "60", "--size", "64"]) == 0
    (folder / "DIR").symlink_to("MIMIC")
    vae = pipelines.VAE | {"in_channels": 3, "out_channels": 3}
    base = pipelines.write(folder / "stable-diffusion-v1-4", vae=vae)
    (folder / "CLIP").symlink_to(base / "tokenizer")
    pipelines.write_bert(folder / "RadBERT", width=pipelines.UNET["cross_attention_dim"])
    (folder / "stable-diffusion-v1-5").symlink_to(base)
    single = str(folder / "v1-5-pruned.safetensors")
    assert main(["convert", str(base), single, "--to", "single-file"]) == 0
    (folder / "runs").mkdir()
    (folder / "runs" / "stable-diffusion-v1-4").symlink_to(base)
    mask = Image.new("L", (16, 16))  # of the size of what is sampled
    mask.paste(255, (4, 4, 12, 12))
    mask.save(folder / "mask.png")
    return folder


def test_every_command_of_the_pages_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    ran = []
    for page, (verb, *words) in documented():
        if page == "data.md" and "data.md" not in ran:  # which prepares and tunes for itself
            shutil.rmtree("runs/data")
            shutil.rmtree("runs/tuned")
        assert verb in VERBS, f"{page}: {verb}"
        if any(word in ELSEWHERE for word in words) or "…" in words:
            continue
        code = main([verb, *words, *TINY[verb]])
        said = capsys.readouterr()
        assert code == 0, f"{page}: jaxcxr {verb} {shlex.join(words)}: {said.err.strip().splitlines()[-1:]}"
        ran += [page, verb]
    assert {"prepare", "cache", "train", "sample", "convert", "plan"} <= set(ran)


def test_the_papers_road_runs_from_prepare_to_diffusers(folder, monkeypatch):
    """RoentGen's selection and training, as `configs/roentgen.py` says."""
    monkeypatch.chdir(folder)
    data, base = "--config.data.path=runs/papers/data", "--config.model.base=stable-diffusion-v1-4"
    for command in (
        "prepare --config configs/data/roentgen.py --source MIMIC --out runs/papers/data --config.data.tokenizer=CLIP",
        f"cache --config configs/roentgen.py --out runs/papers/cache {data} {base}",
        f"train --config configs/roentgen.py --workdir runs/papers/run {data} --config.data.cache=runs/papers/cache",
        'sample --checkpoint runs/papers/run --prompt "No pleural effusion." --out runs/papers/samples',
        "convert runs/papers/run runs/papers/diffusers --to diffusers --verify",
    ):
        verb, *words = shlex.split(command)
        assert main([verb, *words, *TINY[verb]]) == 0, command


def test_every_verb_has_an_example_that_is_its_own():
    import importlib

    for verb in VERBS:
        words = shlex.split(importlib.import_module(f"jaxcxr.verbs.{verb}").EXAMPLE)
        assert words[:2] == ["jaxcxr", verb]
