"""Whitened latents: what they are, and that the autoencoder reconstructs what it did."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import whitening
from jaxcxr.interop.tensors import Tensor
from jaxcxr.models.vae import normalize, reconstruction, split_moments


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    brightness = rng.uniform(40, 200, (24, 1, 1))
    return np.clip(brightness + 20 * rng.standard_normal((24, 16, 16)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def before(source):
    """An autoencoder with a channel of latents that hardly varies."""
    checkpoint = interop.read(source, only=("vae",))
    kernel = np.array(checkpoint.tensors["vae.quant_conv.kernel"].read())
    kernel[..., 2] *= 0.01
    return interop.Checkpoint(checkpoint.files, checkpoint.tensors | {"vae.quant_conv.kernel": Tensor.of(kernel)})


@pytest.fixture(scope="module")
def after(before, images):
    return whitening.whitened(before, images)


def moments(checkpoint, images):
    vae = interop.load_read(checkpoint).vae
    mean, logvar = split_moments(vae.encode(normalize(images[..., None], 1)))
    return np.asarray(mean * vae.config.scaling_factor, np.float64), np.asarray(logvar, np.float64)


def test_the_latents_are_white(before, after, images):
    latents = moments(after, images)[0].reshape(-1, 4)
    variances = np.linalg.eigvalsh(np.cov(moments(before, images)[0].reshape(-1, 4).T))
    wide = variances >= whitening.LEAST_SHARE * variances.mean()
    assert 1 < wide.sum() < 4
    covariance = np.cov(latents.T)
    assert np.abs(latents.mean(axis=0)).max() < 1e-3
    assert np.trace(covariance) / 4 == pytest.approx(1, rel=1e-3)
    narrow, even = np.split(np.linalg.eigvalsh(covariance), [4 - wide.sum()])
    np.testing.assert_allclose(even, even[-1], rtol=1e-2)
    np.testing.assert_allclose(
        narrow / even[-1], variances[~wide] / (whitening.LEAST_SHARE * variances.mean()), rtol=1e-2
    )


def test_reconstructions_stay(before, after, images):
    ours, theirs = (
        np.asarray(reconstruction(interop.load_read(each).vae, images[..., None])) for each in (before, after)
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


def test_the_posterior_is_as_wide_as_what_is_mixed(before, after, images):
    logvar, config = moments(before, images)[1], json.loads(before.files["vae/config.json"])
    mean = moments(before, images)[0] / config["scaling_factor"]
    white = moments(after, images)[0] / json.loads(after.files["vae/config.json"])["scaling_factor"]
    whiten = np.linalg.lstsq((mean - mean.mean((0, 1, 2))).reshape(-1, 4), white.reshape(-1, 4))[0]
    exact = np.log(np.exp(logvar) @ whiten**2)
    np.testing.assert_allclose(moments(after, images)[1], exact, atol=0.02)


def test_it_is_published(source, images, tmp_path):
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place:02}.png")
    options = ["--only", "vae", "--whiten", str(tmp_path)]
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "diffusers", *options]) == 0
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    with torch.no_grad():
        found = theirs.encode(torch.tensor(images[:, None] / 127.5 - 1, dtype=torch.float32)).latent_dist.mode()
    covariance = np.cov((found * theirs.config.scaling_factor).numpy().transpose(0, 2, 3, 1).reshape(-1, 4).T)
    assert np.trace(covariance) / 4 == pytest.approx(1, rel=1e-3)


def test_what_learnt_from_the_latents_is_refused(source, before, images, tmp_path, capsys):
    with pytest.raises(UserError, match="before anything learns from its latents; there is unet, text_encoder"):
        whitening.whitened(interop.read(source), images)
    config = json.loads(before.files["vae/config.json"]) | {"use_quant_conv": False}
    fewer = {name: tensor for name, tensor in before.tensors.items() if "vae.quant_conv" not in name}
    bare = interop.Checkpoint({"vae/config.json": json.dumps(config).encode()}, fewer)
    with pytest.raises(UserError, match="no quant_conv and post_quant_conv"):
        whitening.whitened(bare, images)
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "lora", "--whiten", str(tmp_path)]) == 2
    assert "--whiten: is for an autoencoder" in capsys.readouterr().err
