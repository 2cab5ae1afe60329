"""The same prompt, latents and scheduler give diffusers' picture."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from tests import pipelines

PROMPTS = pipelines.REPORTS[1:3]


def diffusers_pictures(folder, latents, steps, guidance):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    images = pipeline(
        PROMPTS,
        latents=torch.from_numpy(latents),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=16,
        width=16,
    ).images
    return np.stack([np.asarray(image) for image in images])


def worst_pixel(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


@pytest.mark.parametrize(
    ("channels", "prediction_type", "guidance"),
    [(1, "epsilon", 4.0), (3, "v_prediction", 1.0)],
)
def test_pictures_agree(tmp_path, channels, prediction_type, guidance):
    source = pipelines.write(tmp_path / "hf", vae_channels=channels, prediction_type=prediction_type)
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 8), dtype=np.float32)
    np.save(tmp_path / "latents.npy", latents)
    assert main(["convert", str(source), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "exported"), "--to", "diffusers"]) == 0
    argv = ["sample", "--checkpoint", str(tmp_path / "orbax"), "--out", str(tmp_path / "samples"), "--steps", "10"]
    for prompt in PROMPTS:
        argv += ["--prompt", prompt]
    assert main([*argv, "--guidance", str(guidance), "--latents", str(tmp_path / "latents.npy")]) == 0

    rows = [json.loads(line) for line in (tmp_path / "samples" / "manifest.jsonl").read_text().splitlines()]
    ours = np.stack([np.asarray(Image.open(tmp_path / "samples" / row["file_name"])) for row in rows])
    theirs = diffusers_pictures(tmp_path / "exported", latents, 10, guidance)
    assert np.std(theirs.astype(float)) > 5, "a flat picture would agree with anything"
    assert worst_pixel(ours, theirs) <= 2
    assert worst_pixel(theirs, diffusers_pictures(source, latents, 10, guidance)) == 0
