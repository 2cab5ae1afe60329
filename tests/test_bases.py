"""The bases that come with the package: found by name, small, and drawing what they are asked for."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

import jaxcxr
from jaxcxr import bases, interop
from jaxcxr import config as configs
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.phantoms.classifier import read, see
from jaxcxr.phantoms.truth import CLASSES
from jaxcxr.plan.networks import describe
from tests import pipelines

ROOT = Path(__file__).parents[1]
SHARED = ["vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"]


@pytest.fixture(scope="module")
def phantom():
    return jaxcxr.load("phantom")


@pytest.mark.parametrize("name", bases.NAMES)
def test_a_base_is_found_by_name(name):
    pipeline = interop.load(name, only=("unet",))
    assert pipeline.unet.config.sample_size == 16
    assert (bases.FOLDER / name / "README.md").read_text().count(f"launch/bases.sh RUN {name}") == 1


@pytest.mark.parametrize("file", SHARED)
def test_the_bases_share_autoencoder_and_tokenizer(file):
    assert len({(bases.FOLDER / name / file).read_bytes() for name in bases.NAMES}) == 1


def test_the_bases_are_in_the_wheel_and_together_small():
    files = {file for file in bases.FOLDER.glob("*/**/*") if file.is_file()}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {file for pattern in patterns["jaxcxr.bases"] for file in bases.FOLDER.glob(pattern) if file.is_file()}
    assert packed == files
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_a_folder_of_that_name_is_taken_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    pipelines.write(tmp_path / "phantom")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert interop.load("phantom", only=("unet",)).unet.config.sample_size == pipelines.UNET["sample_size"]
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_name_lists_the_bases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="phantom, phantom-no-effusion, phantom-unnamed"):
        interop.read("fantom")


def test_a_plan_takes_a_base_by_name():
    config = configs.load(ROOT / "configs" / "base.py", ["--config.model.base=phantom", "--config.data.size=64"])
    assert describe(config).unet.config.sample_size == 16


def test_phantom_draws_what_it_is_asked_for(phantom):
    asked = {
        "left effusion": "Large left pleural effusion.",
        "right effusion": "Large right pleural effusion.",
        "cardiomegaly": "Severe cardiomegaly.",
        "right pneumothorax": "Large right pneumothorax.",
        "left pacemaker": "Left chest wall pacemaker.",
    }
    prompts = [prompt for prompt in asked.values() for _ in range(4)]
    pictures = phantom(prompts, steps=20, guidance=3.0, seed=0, output_type="np")[..., 0]
    seen = see(read("first"), np.round(255 * pictures).astype(np.uint8)).present
    places = [CLASSES.index(name) for name in asked for _ in range(4)]
    assert np.mean(seen[np.arange(len(seen)), places]) >= 0.85


def test_the_same_picture_in_diffusers(phantom):
    torch = pytest.importorskip("torch")
    from diffusers import StableDiffusionPipeline

    prompt = "Large left pleural effusion."
    latents = np.random.default_rng(0).standard_normal((1, 8, 16, 16), np.float32)
    ours = phantom([prompt], steps=10, guidance=3.0, latents=latents, output_type="np")
    theirs = StableDiffusionPipeline.from_pretrained(str(bases.FOLDER / "phantom"), torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    picture = theirs(
        [prompt], num_inference_steps=10, guidance_scale=3.0, latents=torch.tensor(latents), output_type="np"
    ).images
    assert np.abs(ours[..., 0] - picture[..., 0]).max() <= 2 / 255


def test_sampling_a_base_by_name_writes_gray_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["sample", "--checkpoint", "phantom", "--prompt", "Severe cardiomegaly.", "--out", "out", "--steps", "2"]
    assert main(argv) == 0
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    assert row["prompt"] == "Severe cardiomegaly."
