"""ControlNet: where it starts, its loss against PyTorch, what is published, and what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcxr import config as configs
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.data.loader import as_text, open_split
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import to_torch
from jaxcxr.methods import make_loss
from jaxcxr.training.model import make_model
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

BATCH = 4
PROMPT = pipelines.REPORTS[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("torch")
    return pipelines.write(tmp_path_factory.mktemp("base") / "pipeline")


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    """A picture for each record, in colour or gray."""
    folder, rng = tmp_path_factory.mktemp("conditions"), np.random.default_rng(0)
    for split in ("train", "validate"):
        for number, record in enumerate(open_split(runs.data(), split)):
            shape = (runs.SIZE, runs.SIZE, 3) if number % 2 else (runs.SIZE, runs.SIZE)
            picture = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
            picture.save(folder / f"{as_text(record['id'])}.png")
    return folder


@pytest.fixture(scope="module")
def batch(base):
    rng, tokenizer = np.random.default_rng(0), tokens.load(base / "tokenizer")
    return {
        "image": rng.integers(0, 256, (BATCH, runs.SIZE, runs.SIZE, 1), np.uint8),
        "condition": rng.integers(0, 256, (BATCH, runs.SIZE, runs.SIZE, 3), np.uint8),
        "input_ids": np.asarray(tokens.encode(tokenizer, pipelines.REPORTS, tokens.length(tokenizer))),
    }


def config_of(base, conditions="", **changes):
    config = configs.load(runs.ROOT / "configs" / "controlnet.py")
    config.model.base, config.data.conditions = str(base), str(conditions)
    return runs.small(config, {"optimizer.warmup_steps": 0, "objective.caption_dropout": 0.0, **changes})


def test_it_starts_as_the_base(base, batch):
    errors = []
    for name in ("diffusion", "controlnet"):
        config = config_of(base, method=name)
        pipeline, parameters = make_model(config, jax.random.key(0))
        loss = jax.jit(make_loss(pipeline, config))
        errors.append(loss(parameters, batch, jax.random.split(jax.random.key(1), BATCH))[0])
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-6)
    copied = [name for name in parameters if f"unet{name.removeprefix('controlnet')}" in parameters]
    assert len(copied) > 40
    for name in copied:
        np.testing.assert_array_equal(parameters[name], parameters[f"unet{name.removeprefix('controlnet')}"])


def test_loss_and_gradient_are_pytorchs(base, batch):
    import diffusers
    import torch

    config = config_of(base)
    pipeline, parameters = make_model(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    own = {
        name: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in parameters.items()
        if name.startswith("controlnet.")
    }
    keys = jax.random.split(jax.random.key(2), BATCH)
    loss = make_loss(pipeline, config)

    def mean(own):
        errors, _ = loss({**parameters, **own}, batch, keys)
        return errors.mean(), errors

    slopes, errors = jax.jit(jax.grad(mean, has_aux=True))(own)

    posterior, noise, time, _ = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0)

    def normal(keys):
        drawn = jax.vmap(lambda key: jax.random.normal(key, (runs.SIZE // 2, runs.SIZE // 2, 4)))(keys)
        return torch.tensor(np.asarray(drawn)).permute(0, 3, 1, 2)

    unet, vae = (
        module.from_pretrained(base, subfolder=name)
        for module, name in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae"))
    )
    scheduler = diffusers.DDIMScheduler.from_pretrained(base, subfolder="scheduler")
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    named = dict(to_torch(name, np.asarray(value)) for name, value in own.items())
    control.load_state_dict({name.removeprefix("controlnet."): torch.tensor(value) for name, value in named.items()})
    timesteps = torch.tensor([int(jax.random.randint(key, (), 0, 1000)) for key in time])
    with torch.no_grad():
        image = torch.tensor(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1
        drawn = vae.encode(image).latent_dist
        x = scheduler.add_noise(
            (drawn.mean + drawn.std * normal(posterior)) * vae.config.scaling_factor, normal(noise), timesteps
        )
        states = torch.tensor(np.asarray(pipeline.with_parameters(parameters).text_encoder(batch["input_ids"])))
    condition = torch.tensor(batch["condition"]).permute(0, 3, 1, 2) / 255
    down, middle = control(x, timesteps, states, condition, return_dict=False)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    wanted = ((unet(x, timesteps, states, **added).sample - normal(noise)) ** 2).mean((1, 2, 3))
    wanted.mean().backward()
    np.testing.assert_allclose(errors, wanted.detach(), rtol=1e-5)
    theirs = {name: parameter.grad.numpy() for name, parameter in control.named_parameters()}
    largest = max(np.abs(slope).max() for slope in theirs.values())
    for name, value in slopes.items():
        key, slope = to_torch(name, np.asarray(value))
        other = theirs[key.removeprefix("controlnet.")]
        np.testing.assert_allclose(slope, other, atol=1e-4 * np.abs(other).max() + 1e-7 * largest, err_msg=name)


@pytest.fixture(scope="module")
def trained(base, conditions, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    changes = {"optimizer.learning_rate": 1e-2, "ema_decay": 0.0}
    train(config_of(base, conditions, steps=4, checkpoint_every=4, sample_every=4, **changes), workdir)
    return workdir


def drawn(out, checkpoint, *options):
    """The picture of a checkpoint under `condition.png`, from `latents.npy`."""
    how = ["--sampler", "ddim", "--steps", "4", "--guidance", "3", "--latents", "latents.npy", "--prompt", PROMPT]
    argv = ["--checkpoint", str(checkpoint), *how, "--control", "condition.png", *options, "--out", out]
    assert main(["sample", *argv]) == 0
    return np.asarray(Image.open(f"{out}/00000.png"), float)


def test_diffusers_draws_our_picture(base, trained, tmp_path, monkeypatch):
    import diffusers
    import torch

    monkeypatch.chdir(tmp_path)
    assert list((trained / "samples").glob("*.png"))
    assert main(["convert", str(trained), "alone", "--to", "controlnet"]) == 0
    assert main(["convert", str(trained), "whole", "--to", "diffusers"]) == 0
    rng = np.random.default_rng(3)
    condition = Image.fromarray(rng.integers(0, 256, (runs.SIZE, runs.SIZE, 3), np.uint8))
    condition.save("condition.png")
    latents = rng.standard_normal((1, 4, runs.SIZE // 2, runs.SIZE // 2)).astype(np.float32)
    np.save("latents.npy", latents)
    control = diffusers.ControlNetModel.from_pretrained("alone")
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=control, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    # Its image processor wants colour.
    decoded = {}
    pipe.image_processor.postprocess = lambda image, **_: decoded.setdefault("image", image)
    pictures = {}
    for scale in (1.0, 0.5):
        decoded.clear()
        pipe(
            PROMPT,
            condition,
            num_inference_steps=4,
            guidance_scale=3.0,
            latents=torch.tensor(latents),
            output_type="pt",
            controlnet_conditioning_scale=scale,
        )
        theirs = (decoded["image"][0, 0] / 2 + 0.5).clamp(0, 1).mul(255).round().numpy()
        ours = drawn(f"drawn-{scale}", base, "--controlnet", "alone", "--control-scale", str(scale))
        assert np.abs(ours - theirs).max() <= 2
        pictures[scale] = ours
    assert np.abs(pictures[1.0] - pictures[0.5]).max() > 2
    for source in (trained, "whole"):
        assert np.abs(drawn(f"of-{Path(source).name}", source) - pictures[1.0]).max() <= 2


def test_conditions_that_do_not_fit_are_refused(base, conditions, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.conditions: is empty"):
        train(config_of(base), tmp_path / "run")
    with pytest.raises(UserError, match="no such folder"):
        train(config_of(base, tmp_path / "nowhere"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no PNG files"):
        train(config_of(base, tmp_path / "empty"), tmp_path / "run")
    (tmp_path / "some").mkdir()
    for file in sorted(conditions.iterdir())[:-1]:
        (tmp_path / "some" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"has no picture for the record in place \d+ of (train|validate)"):
        train(config_of(base, tmp_path / "some"), tmp_path / "run")
    (tmp_path / "large").mkdir()
    for file in conditions.iterdir():
        Image.open(file).resize((20, 20)).save(tmp_path / "large" / file.name)
    with pytest.raises(UserError, match=rf"a picture is of 20 x 20 pixels, config.data.size is {runs.SIZE}"):
        train(config_of(base, tmp_path / "large"), tmp_path / "run")


def test_pictures_that_do_not_fit_are_refused(base, trained, tmp_path, capsys):
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    out = ["--prompt", PROMPT, "--steps", "2", "--out", str(tmp_path / "out")]
    for options, message in (
        ([str(trained)], "every picture wants a condition image; give --control"),
        ([str(base), "--control", str(tmp_path / "large.png")], "this checkpoint has no ControlNet; give --controlnet"),
        ([str(trained), "--control", str(tmp_path / "large.png")], "is of 20 x 20 pixels, the pictures are of 16"),
        ([str(base), "--controlnet", str(base)], "has no ControlNet; give a folder of one"),
    ):
        assert main(["sample", "--checkpoint", *options, *out]) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", str(base), str(tmp_path / "out"), "--to", "controlnet"]) == 2
    assert main(["convert", str(trained), str(tmp_path / "out.safetensors"), "--to", "single-file"]) == 2
    assert "controlnet: has no place in a single file; leave it out with --only unet,vae" in capsys.readouterr().err


def test_a_controlnet_of_another_unet_is_refused(base, trained, tmp_path):
    other = pipelines.write(tmp_path / "other" / "pipeline", unet={**pipelines.UNET, "block_out_channels": [32, 32]})
    with pytest.raises(UserError, match=r"is for another U-Net: its block_out_channels is \(32, 64\)"):
        interop.with_controlnet(interop.read(other), trained)
