"""Pictures drawn and edited by every sampler agree with those of diffusers' pipelines under the same noise."""

import dataclasses
import functools
import importlib
import json

import jax
import numpy as np
import pytest

import jaxcxr
from jaxcxr.diffusion.samplers import SAMPLERS
from jaxcxr.draw import picture_keys
from jaxcxr.generate import initial_noise
from jaxcxr.interop.config_files import SCHEDULER_CONFIG
from jaxcxr.pipeline import Pipeline
from tests import pipelines

pytestmark = pytest.mark.slow
torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")

PROMPTS = pipelines.REPORTS[1:3]
PLACES = [(0, 0), (0, 1)]
LATENTS, SIDE = (8, 8, 4), 16
STEPS = 8
TOLERANCE = 0.25 / 255
RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (SIDE, SIDE), np.uint8)
MASK = np.zeros((SIDE, SIDE), bool)
MASK[4:13, 2:9] = True
NAMES = [name for name in SAMPLERS if name != "flow-euler"]
MASKED = [("ddim", 1.0), ("ddim", 0.6), ("dpm++", 1.0), ("euler-ancestral", 0.6), ("heun", 0.6), ("pndm", 1.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("written") / "base")


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory):
    unet = pipelines.UNET | {"in_channels": 9}
    return pipelines.write(tmp_path_factory.mktemp("inpainting") / "base", unet=unet)


def scheduler_config(folder):
    # What diffusers' inpainting pipeline does of itself, and the others leave.
    return json.loads((folder / SCHEDULER_CONFIG).read_text()) | {"skip_prk_steps": True}


def ours(folder, sampler, **arguments):
    return loaded(folder)(PROMPTS, steps=STEPS, sampler=sampler, output_type="np", **arguments)


@functools.cache
def loaded(folder):
    networks = jaxcxr.load(folder).networks
    files = networks.files | {SCHEDULER_CONFIG: json.dumps(scheduler_config(folder)).encode()}
    return Pipeline(dataclasses.replace(networks, files=files))


def theirs(folder, name, sampler, draws, monkeypatch, **arguments):
    """What diffusers' class of that name draws, its random numbers in their order taken from `draws`."""
    kind = getattr(diffusers, SAMPLERS[sampler].scheduler)
    scheduler = kind.from_config(scheduler_config(folder))
    pipeline = getattr(diffusers, name).from_pretrained(folder, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    left = iter(draws)
    for module in ("diffusers.models.autoencoders.vae", type(pipeline).__module__, kind.__module__):
        if hasattr(module := importlib.import_module(module), "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: in_torch(next(left), shape))
    return pipeline(PROMPTS, num_inference_steps=STEPS, output_type="np", **arguments).images


def in_torch(value, shape):
    value = torch.from_numpy(value.transpose(0, 3, 1, 2).copy())
    assert value.shape == tuple(shape)
    return value


def noise():
    return np.stack([initial_noise(*place, LATENTS) for place in PLACES])


def drawn(number):
    """What is drawn from a picture's key with a number folded into it."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(picture_keys(PLACES), number)
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, LATENTS))(keys))


def of_calls():
    return [drawn(call) for call in range(2 * STEPS)]


def tensor(value):
    return torch.from_numpy(np.asarray(value, np.float32))[None, None].repeat(2, 1, 1, 1)


def assert_agree(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 0.02, "a flat picture would agree with anything"
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("sampler", NAMES)
def test_pictures_agree_for_every_sampler(folder, sampler, monkeypatch):
    expected = theirs(
        folder, "StableDiffusionPipeline", sampler, [noise(), *of_calls()], monkeypatch, guidance_scale=3.0
    )
    assert_agree(ours(folder, sampler, guidance=3.0), expected)


@pytest.mark.parametrize(
    ("more", "same"),
    [
        ({"negative_prompt": "Cardiomegaly."}, {"negative_prompt": ["Cardiomegaly."] * 2}),
        ({"guidance_rescale": 1.0}, {"guidance_rescale": 1.0}),
    ],
    ids=["negative prompt", "rescale"],
)
def test_guidance_agrees(folder, more, same, monkeypatch):
    expected = theirs(folder, "StableDiffusionPipeline", "ddim", [noise()], monkeypatch, guidance_scale=20.0, **same)
    found = ours(folder, "ddim", guidance=20.0, **more)
    assert_agree(found, expected)
    assert np.abs(found - ours(folder, "ddim", guidance=20.0)).max() > 4 / 255, "it changes nothing"


@pytest.mark.parametrize("sampler", NAMES)
def test_images_to_images_agree(folder, sampler, monkeypatch):
    draws = [drawn(2**31), noise(), *of_calls()]
    image = tensor(IMAGE / 255)
    expected = theirs(
        *(folder, "StableDiffusionImg2ImgPipeline", sampler, draws, monkeypatch),
        image=image,
        strength=0.6,
        guidance_scale=3.0,
    )
    assert_agree(ours(folder, sampler, guidance=3.0, image=IMAGE, strength=0.6), expected)


@pytest.mark.parametrize(("sampler", "strength"), MASKED)
def test_inpainting_agrees(folder, sampler, strength, monkeypatch):
    draws = [drawn(2**31), noise(), drawn(2**31 + 1), *of_calls()]
    expected = theirs(
        *(folder, "StableDiffusionInpaintPipeline", sampler, draws, monkeypatch),
        image=tensor(IMAGE / 255),
        mask_image=tensor(MASK),
        strength=strength,
        guidance_scale=3.0,
        height=SIDE,
        width=SIDE,
    )
    assert_agree(ours(folder, sampler, guidance=3.0, image=IMAGE, mask=MASK, strength=strength), expected)


@pytest.mark.parametrize(("sampler", "strength", "guidance"), [("ddim", 1.0, 3.0), ("pndm", 0.6, 1.0)])
def test_inpainting_with_nine_channels_agrees(inpainting_folder, sampler, strength, guidance, monkeypatch):
    draws = [*([drawn(2**31)] if strength < 1 else []), noise(), drawn(2**31 + 1), *of_calls()]
    expected = theirs(
        *(inpainting_folder, "StableDiffusionInpaintPipeline", sampler, draws, monkeypatch),
        image=tensor(IMAGE / 255),
        mask_image=tensor(MASK),
        strength=strength,
        guidance_scale=guidance,
        height=SIDE,
        width=SIDE,
    )
    found = ours(inpainting_folder, sampler, guidance=guidance, image=IMAGE, mask=MASK, strength=strength)
    assert_agree(found, expected)
