"""Another text encoder for a base: projections against PyTorch, new keys and values, and what is published."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.orbax import read_item
from jaxcxr.methods import make_loss
from jaxcxr.parallel.mesh import make_mesh
from jaxcxr.plan.networks import describe
from jaxcxr.training.model import make_model
from jaxcxr.training.program import batch_shapes
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

WIDE = 24  # the other encoder's; the base's is 32
PROMPTS = pipelines.REPORTS[1:3]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a base and a BERT that is no part of it."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("projection")
    pipelines.write(folder / "base")
    pipelines.write_bert(folder / "bert", WIDE)
    return folder


def config_of(source, fit="linear", **changes) -> ConfigDict:
    config = configs.load(runs.ROOT / "configs" / "projection.py")
    config.model.base, config.model.text_encoder_base = str(source / "base"), str(source / "bert")
    config.model.text_encoder_fit = fit
    return runs.small(config, {"optimizer.warmup_steps": 0, "ema_decay": 0.5, **changes})


def tuning_of(source, fit, **changes) -> ConfigDict:
    """Of a diffusion run that takes the other encoder at once."""
    config = config_of(source, fit, method="diffusion", trainable=r"unet\..*")
    config.update_from_flattened_dict(changes)
    return config


def ids_of(folder, texts):
    tokenizer = tokens.load(folder)
    return tokens.encode(tokenizer, texts, tokens.length(tokenizer))


@pytest.mark.parametrize("fit", ["linear", "mlp"])
def test_updates_are_pytorchs_on_the_states_of_transformers(source, fit):
    import torch
    from transformers import BertModel, CLIPTextModel

    config = config_of(source, fit)
    pipeline, parameters = make_model(config, jax.random.key(0))
    own = {name: value for name, value in parameters.items() if ".encoder_hid_proj." in name}
    batch = {
        "input_ids": ids_of(source / "bert", pipelines.REPORTS),
        "teacher_ids": ids_of(source / "base" / "tokenizer", pipelines.REPORTS),
    }
    loss, tx = make_loss(pipeline, config), optax.adamw(1e-2, weight_decay=0.1)
    layers = {"linear": [(WIDE, 32)], "mlp": [(WIDE, 32), (32, 32)]}[fit]
    dense = [torch.nn.Linear(*shape) for shape in layers]
    module = (
        torch.nn.Sequential(*dense) if fit == "linear" else torch.nn.Sequential(dense[0], torch.nn.SiLU(), dense[1])
    )
    names = {"linear": [""], "mlp": ["linear_1.", "linear_2."]}[fit]
    for layer, name in zip(dense, names, strict=True):
        layer.weight.data = torch.tensor(np.array(own[f"unet.encoder_hid_proj.{name}kernel"]).T)
        layer.bias.data = torch.tensor(np.array(own[f"unet.encoder_hid_proj.{name}bias"]))
    with torch.no_grad():
        bert = BertModel.from_pretrained(source / "bert").eval()
        clip = CLIPTextModel.from_pretrained(source / "base" / "text_encoder").eval()
        states = bert(torch.tensor(batch["input_ids"]).long())[0]
        taught = clip(torch.tensor(batch["teacher_ids"]).long())[0][:, : states.shape[1]]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    state = tx.init(own)
    for _ in range(3):
        (value, metrics), gradients = jax.value_and_grad(
            lambda learnt: (lambda errors, found: (errors.mean(), found))(
                *loss({**parameters, **learnt}, batch, jax.random.split(jax.random.key(0), 4))
            ),
            has_aux=True,
        )(own)
        updates, state = tx.update(gradients, state, own)
        own = optax.apply_updates(own, updates)
        optimizer.zero_grad()
        projected = module(states)
        theirs = torch.nn.functional.mse_loss(projected, taught)
        theirs.backward()
        optimizer.step()
        np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
        cosine = torch.nn.functional.cosine_similarity(projected, taught, dim=-1).mean()
        np.testing.assert_allclose(metrics["cosine"], cosine.item(), atol=1e-5)
    for layer, name in zip(dense, names, strict=True):
        found = own[f"unet.encoder_hid_proj.{name}kernel"]
        np.testing.assert_allclose(found.T, layer.weight.detach().numpy(), atol=1e-5)
        found = own[f"unet.encoder_hid_proj.{name}bias"]
        np.testing.assert_allclose(found, layer.bias.detach().numpy(), atol=1e-5)


def diffusers_pictures(folder, latents) -> np.ndarray:
    """(N, H, W, C) in [0, 1], drawn by diffusers of the latents (N, C, h, w)."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.tensor(latents)
    return pipe(PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="np").images


def our_pictures(checkpoint, latents) -> np.ndarray:
    import jaxcxr

    pipe = jaxcxr.load(checkpoint)
    return pipe(PROMPTS, steps=4, guidance=3.0, latents=latents, output_type="np")


@pytest.mark.slow
def test_a_run_is_published_for_diffusers_and_resumes_bit_for_bit(source, tmp_path, capfd):
    config = config_of(source, **{"eval_every": 3, "sample_every": 6})
    train(config, tmp_path / "whole")
    for stop in (1, 2, 3, 4, 5, None):
        train(config, tmp_path / "stopped", stop_at=stop)
    states = [
        {item: read_item(tmp_path / name / "checkpoints" / "6" / item) for item in ("params", "ema")}
        for name in ("whole", "stopped")
    ]
    for item in ("params", "ema"):
        assert set(states[0][item]) == {"unet.encoder_hid_proj.kernel", "unet.encoder_hid_proj.bias"}
        for name, tensor in states[0][item].items():
            np.testing.assert_array_equal(states[1][item][name].read(), tensor.read(), name)
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    cosines = [row["cosine"] for row in rows if "cosine" in row]
    assert len(cosines) == 6
    assert cosines[-1] > cosines[0]

    assert main(["convert", str(tmp_path / "whole"), str(tmp_path / "published"), "--to", "diffusers"]) == 0
    assert not (tmp_path / "published" / "teacher").exists()
    assert interop.read(tmp_path / "whole").networks == ["text_encoder", "unet", "vae"]
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    theirs, ours = diffusers_pictures(tmp_path / "published", latents), our_pictures(tmp_path / "whole", latents)
    assert np.abs(theirs - ours).max() <= 2 / 255
    assert theirs.std() > 0.02, "a picture that says something"
    assert "diffusers does not have" not in capfd.readouterr().out


@pytest.mark.slow
def test_what_diffusers_does_not_have_is_said_at_the_start_and_kept_for_ourselves(source, tmp_path, capfd):
    train(config_of(source, "mlp"), tmp_path / "run")
    said = capfd.readouterr()
    assert "hidden layer, which diffusers does not have" in said.out + said.err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "text_encoder_fit=linear" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "orbax"]) == 0
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    pictures = [our_pictures(tmp_path / name, latents) for name in ("run", "out")]
    np.testing.assert_array_equal(*pictures)
    # The workdir is a base for tuning the U-Net; its projection stays frozen.
    config = tuning_of(source, "", trainable=r"unet\.conv_in\..*", steps=2)
    config.model.base, config.model.text_encoder_base = str(tmp_path / "run"), ""
    train(config, tmp_path / "tuned")
    before, after = (interop.read(tmp_path / name).tensors for name in ("run", "tuned"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if (tensor.read() != before[name].read()).any()}
    assert changed == {"unet.conv_in.kernel", "unet.conv_in.bias"}


def test_new_keys_and_values_are_all_that_starts_anew(source, tmp_path):
    import torch
    from diffusers import UNet2DConditionModel

    pipeline, parameters = make_model(tuning_of(source, "cross_attention"), jax.random.key(0))
    base = interop.load(source / "base").parameters()
    fresh = {name for name, value in parameters.items() if name not in base or value.shape != base[name].shape}
    ours = {name for name in fresh if name.startswith("unet.")}
    assert ours == {name for name in parameters if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert all(parameters[name].shape[0] == WIDE for name in ours)
    for name in base.keys() - fresh:
        if name.startswith(("unet.", "vae.")):
            np.testing.assert_array_equal(parameters[name], base[name], name)
    again = make_model(tuning_of(source, "cross_attention"), jax.random.key(0))[1]
    assert all((again[name] == parameters[name]).all() for name in ours)

    unet = pipeline.with_parameters(parameters)
    interop.save(unet, tmp_path / "out")
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    rng = np.random.default_rng(1)
    latents, states = rng.standard_normal((2, 8, 8, 4), np.float32), rng.standard_normal((2, 9, WIDE), np.float32)
    with torch.no_grad():
        found = theirs(torch.tensor(latents.transpose(0, 3, 1, 2)), 700, torch.tensor(states)).sample
    mine = unet.unet(latents, jnp.array([700, 700]), states)
    np.testing.assert_allclose(mine, found.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_keys_and_values_of_the_same_width_start_anew_too(source, tmp_path):
    pipelines.write_bert(tmp_path / "bert", 32)
    config = tuning_of(source, "cross_attention")
    config.model.text_encoder_base = str(tmp_path / "bert")
    _, parameters = make_model(config, jax.random.key(0))
    base = interop.load(source / "base").parameters()
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.kernel"
    assert (np.asarray(parameters[name]) != base[name]).all()
    assert to_torch(name, interop.Tensor.of(np.asarray(parameters[name])))[1].shape == (32, 32)


def test_a_plan_knows_the_teacher_without_its_weights(source):
    config = config_of(source)
    config.model.base = "stable-diffusion-v1-5"
    pipeline = describe(config)
    assert pipeline.teacher.config.hidden_size == 768
    assert pipeline.parameters()["unet.encoder_hid_proj.kernel"].shape == (WIDE, 768)
    shapes = batch_shapes(config, pipeline, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]), set())
    assert {field: leaf.shape for field, leaf in shapes.items()} == {"input_ids": (4, 64), "teacher_ids": (4, 77)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.text_encoder_base": ""}, r"config\.model\.text_encoder_base: is empty"),
        ({"model.text_encoder_fit": "bilinear"}, r"text_encoder_fit='bilinear': may be linear, mlp, cross_attention"),
        ({"model.text_encoder_fit": ""}, r"hidden_size 24; config\.model\.text_encoder_fit=linear, mlp or cross"),
        ({"model.text_encoder_fit": "cross_attention"}, r"config\.method='projection': the U-Net has none"),
        (
            {"trainable": r"unet\..*"},
            r"config\.trainable=.*conv_in\.bias would learn, which config\.method='projection'",
        ),
        ({"lora.rank": 2, "trainable": ""}, r"config\.lora: unet\..*lora_A\.kernel would learn, which config\.method"),
        ({"trainable": r"text_encoder\..*"}, r"config\.trainable=.*leaves out unet\.encoder_hid_proj\.bias"),
        ({"data.cache": "somewhere"}, r"config\.data\.cache"),
        ({"prior.path": "somewhere"}, r"config\.prior\.path=somewhere: config\.method='projection' reads no images"),
    ],
)
def test_what_does_not_go_together_is_told(source, tmp_path, changes, message):
    config = config_of(source)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_fit_wants_another_text_encoder_and_learns(source, tmp_path):
    config = tuning_of(source, "linear", **{"model.text_encoder_base": ""})
    with pytest.raises(UserError, match=r"text_encoder_fit='linear': fits another text encoder, and none is given"):
        train(config, tmp_path / "run")
    config = tuning_of(source, "cross_attention", trainable=r"unet\.conv_in\..*")
    with pytest.raises(
        UserError, match=r"leaves out unet\..*attn2\.to_k\.kernel, which config\.model\.text_encoder_fit"
    ):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_base_with_a_projection_is_no_teacher_and_may_get_new_keys(source, tmp_path):
    train(config_of(source, steps=1, checkpoint_every=1), tmp_path / "projected")
    config = config_of(source)
    config.model.base = str(tmp_path / "projected")
    with pytest.raises(UserError, match=r"its U-Net has a projection of text already"):
        train(config, tmp_path / "run")
    config = tuning_of(source, "cross_attention", steps=1, checkpoint_every=1)
    config.model.base = str(tmp_path / "projected")
    train(config, tmp_path / "keys")
    found = interop.read(tmp_path / "keys")
    assert not any(".encoder_hid_proj." in name for name in found.tensors)
    assert json.loads(found.files["unet/config.json"])["cross_attention_dim"] == WIDE


def test_a_projection_leaves_the_size_that_the_unet_draws(source):
    pipeline, _ = make_model(config_of(source, **{"data.size": 32}), jax.random.key(0))
    assert pipeline.unet.config.sample_size == pipelines.UNET["sample_size"]
    pipeline, _ = make_model(tuning_of(source, "linear", **{"data.size": 32}), jax.random.key(0))
    assert pipeline.unet.config.sample_size == 16


def test_a_unet_that_is_described_is_not_fitted(source, tmp_path):
    config = tuning_of(source, "linear")
    with config.unlocked():
        config.model.unet = ConfigDict(pipelines.UNET)
    with pytest.raises(UserError, match=r"config\.model\.text_encoder_fit='linear': is for the U-Net of a base"):
        train(config, tmp_path / "run")
