"""Training of inpainting: where it starts, its loss against PyTorch, its masks, and what is published."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr import config as configs
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.diffusion import masks
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import to_torch
from jaxcxr.methods import make_loss
from jaxcxr.training.model import make_model
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

BATCH = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("torch")
    return pipelines.write(tmp_path_factory.mktemp("base") / "pipeline")


@pytest.fixture(scope="module")
def batch(base):
    tokenizer = tokens.load(base / "tokenizer")
    images = np.random.default_rng(0).integers(0, 256, (BATCH, runs.SIZE, runs.SIZE, 1), np.uint8)
    return {"image": images, "input_ids": np.asarray(tokens.encode(tokenizer, pipelines.REPORTS, 77))}


def config_of(base, **changes):
    config = configs.load(runs.ROOT / "configs" / "inpainting.py")
    config.model.base = str(base)
    return runs.small(config, {"optimizer.warmup_steps": 0, "objective.caption_dropout": 0.0, **changes})


def test_it_starts_as_the_base(base, batch):
    """The new channels are of zeros, and the mask's key is no other draw's."""
    errors = []
    for name in ("diffusion", "inpainting"):
        config = config_of(base, method=name)
        pipeline, parameters = make_model(config, jax.random.key(0))
        assert pipeline.unet.config.in_channels == {"diffusion": 4, "inpainting": 9}[name]
        loss = jax.jit(make_loss(pipeline, config))
        errors.append(loss(parameters, batch, jax.random.split(jax.random.key(1), BATCH))[0])
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-6)


def test_loss_and_gradient_are_pytorchs(base, batch):
    import diffusers
    import torch

    config = config_of(base)
    pipeline, parameters = make_model(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    kernel = parameters["unet.conv_in.kernel"]
    parameters["unet.conv_in.kernel"] = kernel + 0.1 * rng.standard_normal(kernel.shape).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), BATCH)
    loss = make_loss(pipeline, config)

    def mean(own):
        errors, _ = loss({**parameters, "unet.conv_in.kernel": own}, batch, keys)
        return errors.mean(), errors

    slope, errors = jax.jit(jax.grad(mean, has_aux=True))(parameters["unet.conv_in.kernel"])

    posterior, noise, time, _ = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 3))(noise)
    mask_keys, masked_posterior = jnp.moveaxis(jax.vmap(jax.random.split)(own), 1, 0)

    def normal(keys):
        drawn = jax.vmap(lambda key: jax.random.normal(key, (runs.SIZE // 2, runs.SIZE // 2, 4)))(keys)
        return torch.tensor(np.asarray(drawn)).permute(0, 3, 1, 2)

    unet = diffusers.UNet2DConditionModel(**{**pipelines.UNET, "in_channels": 9})
    named = dict(to_torch(name, np.asarray(value)) for name, value in parameters.items() if name.startswith("unet."))
    unet.load_state_dict({name.removeprefix("unet."): torch.tensor(value) for name, value in named.items()})
    vae = diffusers.AutoencoderKL.from_pretrained(base, subfolder="vae")
    scheduler = diffusers.DDIMScheduler.from_pretrained(base, subfolder="scheduler")

    def latents(image, keys):
        posterior = vae.encode(image).latent_dist
        return (posterior.mean + posterior.std * normal(keys)) * vae.config.scaling_factor

    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1
    drawn = masks.draw(tuple(config.inpainting.masks), runs.SIZE, mask_keys)
    mask = torch.tensor(np.asarray(drawn)).permute(0, 3, 1, 2)
    timesteps = torch.tensor([int(jax.random.randint(key, (), 0, 1000)) for key in time])
    with torch.no_grad():
        clean = latents(image, posterior)
        small = torch.nn.functional.interpolate(mask, size=clean.shape[2:])
        seen = latents(image * (mask < 0.5), masked_posterior)
        states = torch.tensor(np.asarray(pipeline.with_parameters(parameters).text_encoder(batch["input_ids"])))
    shown = torch.cat([scheduler.add_noise(clean, normal(noise), timesteps), small, seen], dim=1)
    wanted = ((unet(shown, timesteps, states).sample - normal(noise)) ** 2).mean((1, 2, 3))
    wanted.mean().backward()
    np.testing.assert_allclose(errors, wanted.detach(), rtol=1e-5)
    theirs = unet.conv_in.weight.grad.permute(2, 3, 1, 0).numpy()
    np.testing.assert_allclose(slope, theirs, atol=1e-4 * np.abs(theirs).max())


def test_masks_are_of_their_kinds():
    keys = jax.random.split(jax.random.key(0), 200)
    shares = {name: np.asarray(masks.draw((name,), 32, keys)).mean(axis=(1, 2, 3)) for name in masks.MASKS}
    assert (shares.pop("whole") == 1).all()
    for name, share in shares.items():
        assert (share > 0.01).all(), name
        assert (share < 0.75).all(), name
        assert share.std() > 0.05, name
    several = np.asarray(masks.draw(("whole", "box"), 32, keys)).mean(axis=(1, 2, 3))
    assert 60 < (several == 1).sum() < 140
    columns = np.asarray(masks.draw(("lungs",), 32, keys)).mean(axis=0)[..., 0]
    assert columns[:, 15:17].mean() < 0.2 * columns[:, 7:11].mean()  # between the lungs is the heart


def test_it_is_published_as_diffusers_has_it(base, tmp_path):
    import diffusers

    config = config_of(base, steps=2, checkpoint_every=2, sample_every=2, eval_every=0)
    train(config, tmp_path / "run")
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert theirs.unet.config.in_channels == 9


@pytest.mark.parametrize(
    ("names", "message"), [(("box", "ring"), "has 'ring'; it may have box, strokes, lungs, whole"), ((), "is empty")]
)
def test_masks_that_are_none_are_refused(base, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        train(config_of(base, **{"inpainting.masks": names}), tmp_path / "run")
