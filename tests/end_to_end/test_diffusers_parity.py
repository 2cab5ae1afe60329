"""The same prompt, latents and scheduler give diffusers' picture."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from tests import pipelines
from tests.models.test_names import SD15_TEXT, SD15_UNET, SD21_TEXT, SD21_UNET, SD_VAE

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
        height=latents.shape[2] * pipeline.vae_scale_factor,
        width=latents.shape[3] * pipeline.vae_scale_factor,
    ).images
    return np.stack([np.asarray(image) for image in images])


def worst_pixel(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


COLOUR = {"vae": pipelines.VAE | {"in_channels": 3, "out_channels": 3}, "prediction_type": "v_prediction"}
SD15 = {"unet": SD15_UNET, "vae": SD_VAE, "text": SD15_TEXT}
# At 64², where both libraries fit into 20 GB; its 768² would be 96².
SD21 = {"unet": SD21_UNET | {"sample_size": 64}, "vae": SD_VAE, "text": SD21_TEXT, "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("networks", "size", "steps", "guidance"),
    [
        pytest.param({}, 8, 10, 4.0, id="gray"),
        pytest.param(COLOUR, 8, 10, 1.0, id="v-prediction in colour"),
        pytest.param(SD15, 64, 2, 4.0, id="Stable Diffusion 1.5", marks=pytest.mark.full_size),
        pytest.param(SD21, 64, 2, 4.0, id="Stable Diffusion 2.1", marks=pytest.mark.full_size),
    ],
)
def test_pictures_agree(tmp_path, networks, size, steps, guidance):
    source = pipelines.write(tmp_path / "hf", **networks)
    latents = np.random.default_rng(0).standard_normal((2, 4, size, size), dtype=np.float32)
    np.save(tmp_path / "latents.npy", latents)
    assert main(["convert", str(source), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "exported"), "--to", "diffusers"]) == 0
    argv = ["sample", "--checkpoint", str(tmp_path / "orbax"), "--out", str(tmp_path / "samples")]
    for prompt in PROMPTS:
        argv += ["--prompt", prompt]
    argv += ["--steps", str(steps), "--guidance", str(guidance)]
    assert main([*argv, "--latents", str(tmp_path / "latents.npy")]) == 0

    rows = [json.loads(line) for line in (tmp_path / "samples" / "manifest.jsonl").read_text().splitlines()]
    ours = np.stack([np.asarray(Image.open(tmp_path / "samples" / row["file_name"])) for row in rows])
    theirs = diffusers_pictures(tmp_path / "exported", latents, steps, guidance)
    assert np.std(theirs.astype(float)) > 5, "a flat picture would agree with anything"
    assert worst_pixel(ours, theirs) <= 2
    assert worst_pixel(theirs, diffusers_pictures(source, latents, steps, guidance)) == 0
