"""Adapters in and out, against diffusers and peft: files of every layout, and pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcxr import adaptation, interop
from jaxcxr.__main__ import main
from jaxcxr.interop import adapters
from jaxcxr.interop.tensors import open_safetensors
from jaxcxr.training.checkpoint import Checkpoints, claim
from jaxcxr.training.step import init_state
from jaxcxr.training.train import train
from tests import pipelines
from tests.adaptation.test_runs import config_of

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(5)
ATTENTION = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)"
TEXT = r"text_encoder\..*\.(q_proj|k_proj|v_proj|out_proj)"
CONVOLUTIONS = r"unet\..*\.(conv1|proj_in|time_emb_proj|conv_shortcut)"
PROMPTS = pipelines.REPORTS[1:3]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("peft")
    return pipelines.write(tmp_path_factory.mktemp("published") / "base")


SETTINGS = {
    "unet": {"lora.targets": ATTENTION},
    "unet and text": {"lora.targets": f"{ATTENTION}|{TEXT}"},
    "convolutions": {"lora.targets": f"{ATTENTION}|{CONVOLUTIONS}"},
    "dora": {"lora.targets": f"{ATTENTION}|{CONVOLUTIONS}", "lora.dora": ".*"},
    "text dora": {"lora.targets": TEXT, "lora.dora": ".*"},
    "part dora": {"lora.targets": ATTENTION, "lora.dora": r".*to_q"},
    "fc1": {"lora.targets": r"text_encoder\..*\.fc1"},
    "vae": {"lora.targets": r"vae\..*\.conv1"},
    "more": {"lora.targets": ATTENTION, "trainable": r"unet\.conv_in\..*"},
}
TRAINED = ("unet and text", "dora")


@pytest.fixture(scope="module")
def learnt(base, tmp_path_factory):
    """Workdirs with adapters that change a picture, by what they learn; some trained, the others drawn at random."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(name):
        if name not in made:
            made[name] = folder / name.replace(" ", "-")
            config = config_of(base, **{"lora.rank": 3, "lora.alpha": 7.0, **SETTINGS[name]})
            config.steps, config.optimizer.learning_rate, config.ema_decay = 3, 0.05, 0.0
            config.optimizer.warmup_steps, config.checkpoint_every = 0, 0
            (train if name in TRAINED else write_workdir)(config, made[name])
        return made[name]

    return run


def write_workdir(config, folder):
    """What a run of one step would write, its adapters drawn at random."""
    pipeline = interop.load(config.model.base)
    parameters = pipeline.parameters()
    learning = adaptation.of(config, parameters)
    values = learning.start(parameters, jax.random.key(0))
    values = {
        name: jnp.asarray(value + 0.1 * RNG.standard_normal(value.shape, np.float32)) for name, value in values.items()
    }
    claim(folder, config, pipeline.files | learning.file(), frozen=learning.frozen(parameters))
    with Checkpoints(folder, 1) as checkpoints:
        checkpoints.save({**init_state(values, optax.sgd(1.0, momentum=0.9)), "step": jnp.int32(1)})


def verb(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def ours(checkpoint, latents, *options, out):
    np.save(out / "latents.npy", latents)
    argv = ["sample", "--checkpoint", checkpoint, "--out", out / "pictures", "--latents", out / "latents.npy"]
    for prompt in PROMPTS:
        argv += ["--prompt", prompt]
    assert verb(*argv, "--steps", 4, "--guidance", 3, "--sampler", "ddim", *options) == 0
    return read_pictures(out / "pictures")


def read_pictures(folder):
    from PIL import Image

    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows]).astype(int)


def theirs(base, latents, *published):
    """Pictures of diffusers with published adapters: (file or folder, weight)."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    for number, (path, _) in enumerate(published):
        pipeline.load_lora_weights(path, adapter_name=f"a{number}")
    if published:
        names = [f"a{number}" for number in range(len(published))]
        pipeline.set_adapters(names, [weight for _, weight in published])
    images = pipeline(
        PROMPTS, latents=torch.from_numpy(latents), num_inference_steps=4, guidance_scale=3.0, height=16, width=16
    ).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)


@pytest.fixture(scope="module")
def plain(base, latents):
    return theirs(base, latents)


@pytest.mark.parametrize(
    ("name", "to", "weight"),
    [
        ("unet", "lora", 1.0),
        ("unet", "lora-kohya", 0.6),
        ("unet and text", "lora", 0.6),
        ("unet and text", "lora-kohya", 1.0),
        ("convolutions", "lora-kohya", 1.0),
        ("dora", "lora", 1.0),
        ("dora", "lora", 0.6),
    ],
)
def test_diffusers_draws_our_picture_with_a_published_adapter(base, learnt, latents, plain, tmp_path, name, to, weight):
    workdir = learnt(name)
    place = tmp_path / ("adapter" if to == "lora" else "adapter.safetensors")
    assert verb("convert", workdir, place, "--to", to) == 0
    found = theirs(base, latents, (place, weight))
    mine = ours(base, latents, "--adapter", workdir, "--adapter-weight", weight, out=tmp_path)
    assert np.abs(found - plain).max() > 10, "an adapter that changes nothing would agree with anything"
    assert np.abs(found - mine).max() <= 2


def test_a_published_adapter_is_read_as_it_was_learnt(base, learnt, tmp_path):
    tensors = interop.read(base).tensors
    for name, to in (
        ("unet and text", "lora"),
        ("dora", "lora"),
        ("convolutions", "lora-kohya"),
    ):
        place = tmp_path / f"{name}.safetensors"
        assert verb("convert", learnt(name), place, "--to", to) == 0
        workdir, file = adapters.read(learnt(name), tensors), adapters.read(place, tensors)
        assert workdir.keys() == file.keys()
        for layer, each in workdir.items():
            np.testing.assert_array_equal(each.a.read(), file[layer].a.read())
            np.testing.assert_allclose(each.b.read() * each.scale, file[layer].b.read() * file[layer].scale, rtol=1e-6)
            assert (each.magnitude is None) == (file[layer].magnitude is None)
            if each.magnitude is not None:
                np.testing.assert_array_equal(each.magnitude.read(), file[layer].magnitude.read())


def test_several_adapters_are_drawn_with_their_weights(base, learnt, latents, plain, tmp_path):
    assert verb("convert", learnt("unet"), tmp_path / "one", "--to", "lora") == 0
    assert verb("convert", learnt("unet and text"), tmp_path / "two.safetensors", "--to", "lora-kohya") == 0
    found = theirs(base, latents, (tmp_path / "one", 0.5), (tmp_path / "two.safetensors", -0.7))
    options = ("--adapter", tmp_path / "one", "--adapter", tmp_path / "two.safetensors")
    mine = ours(base, latents, *options, "--adapter-weight", 0.5, "--adapter-weight", -0.7, out=tmp_path)
    assert np.abs(found - plain).max() > 10
    assert np.abs(found - mine).max() <= 2


def test_a_merged_folder_is_the_workdirs_pipeline_in_diffusers(base, learnt, latents, plain, tmp_path):
    workdir = learnt("dora")
    assert verb("convert", workdir, tmp_path / "workdir", "--to", "diffusers", "--verify") == 0
    assert verb("convert", workdir, tmp_path / "adapter", "--to", "lora") == 0
    merge = ("convert", base, tmp_path / "merged", "--to", "diffusers", "--adapter", tmp_path / "adapter")
    assert verb(*merge, "--adapter-weight", 1, "--verify") == 0
    mine = ours(workdir, latents, out=tmp_path)
    for folder in ("workdir", "merged"):
        found = theirs(tmp_path / folder, latents)
        assert np.abs(found - plain).max() > 10
        assert np.abs(found - mine).max() <= 2
    weights = (interop.read(tmp_path / folder).tensors for folder in ("workdir", "merged"))
    for (name, one), (_, other) in zip(*(sorted(each.items()) for each in weights), strict=True):
        np.testing.assert_allclose(one.read(), other.read(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "to", "parts"),
    [
        ("text dora", "lora", ("self_attn", "no magnitudes of a text encoder", "--to diffusers")),
        ("dora", "lora-kohya", ("no magnitudes of DoRA in kohya's layout", "--to lora")),
        ("part dora", "lora", ("to_k", "all of a U-Net's adapters or for none", "--to diffusers")),
        ("fc1", "lora", ("fc1", "CLIP's attention", "--to diffusers")),
        ("vae", "lora", ("vae.", "no place", "--to diffusers")),
        ("more", "lora", ("unet.conv_in.bias too", "--to diffusers")),
    ],
)
def test_what_a_file_cannot_hold_is_refused_in_a_line(learnt, tmp_path, capsys, name, to, parts):
    assert verb("convert", learnt(name), tmp_path / "out", "--to", to) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts), said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_options_of_whole_checkpoints_are_refused(base, learnt, tmp_path, capsys):
    out = tmp_path / "out"
    for options, part in (
        (("--adapter", tmp_path), "--adapter: is for whole checkpoints"),
        (("--verify",), "--verify: is for whole checkpoints"),
        (("--only", "text_encoder"), "--only text_encoder: "),
    ):
        assert verb("convert", learnt("unet"), out, "--to", "lora", *options) == 2
        assert part in capsys.readouterr().err
    assert verb("convert", base, out, "--to", "lora") == 2
    assert "is no workdir" in capsys.readouterr().err


def test_a_folder_has_a_card_and_half_precision_may_be_asked_for(learnt, tmp_path):
    out = tmp_path / "out"
    assert verb("convert", learnt("unet and text"), out, "--to", "lora", "--only", "unet", "--dtype", "float16") == 0
    tensors = open_safetensors(out / "pytorch_lora_weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    assert {name.split(".")[0] for name in tensors} == {"unet"}
    card = (out / "README.md").read_text()
    assert "lora]" in card.split("---")[1]
    assert "| LoRA | rank 3," in card
