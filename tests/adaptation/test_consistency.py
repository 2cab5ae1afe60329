"""Consistency distillation against PyTorch on diffusers' U-Net, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr import adaptation
from jaxcxr import config as configs
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import to_torch
from jaxcxr.methods import consistency, make_loss
from jaxcxr.training.model import make_model
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

BATCH, SIDE = 6, 8


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def base(request, tmp_path_factory):
    pytest.importorskip("torch")
    return pipelines.write(tmp_path_factory.mktemp("base") / "pipeline", prediction_type=request.param)


def config_of(base, **changes):
    config = configs.load(runs.ROOT / "configs" / "lcm_lora.py")
    config.model.base = str(base)
    config.lora.rank = 4
    return runs.small(config, {"optimizer.warmup_steps": 0, **changes})


def ids_of(folder, texts):
    tokenizer = tokens.load(folder / "tokenizer")
    return np.asarray(tokens.encode(tokenizer, texts, tokens.length(tokenizer)))


def reference(folder, student, latents, states, nothing, drawn, stride):
    """The loss of the published recipe (diffusers, `train_lcm_distill_lora_sd`), written out, and its gradient."""
    import diffusers
    import torch

    teacher = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    bar, prediction = scheduler.alphas_cumprod, scheduler.config.prediction_type

    def wide(values):
        return values[:, None, None, None]

    def clean_and_noise(output, x, timesteps):
        alpha, sigma = wide(bar[timesteps].sqrt()), wide((1 - bar[timesteps]).sqrt())
        if prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, alpha * output + sigma * x

    def consistent(x, timesteps):
        clean, _ = clean_and_noise(student(x, timesteps, states).sample, x, timesteps)
        scaled = timesteps * 10.0
        return wide(0.25 / (scaled**2 + 0.25)) * x + wide(scaled / (scaled**2 + 0.25).sqrt()) * clean

    noise, timesteps, guidance = (torch.tensor(np.asarray(each)) for each in drawn)
    timesteps, weight = timesteps.long(), wide(guidance) - 1
    noise = noise.permute(0, 3, 1, 2)
    x = scheduler.add_noise(latents, noise, timesteps)
    with torch.no_grad():
        clean, own = clean_and_noise(teacher(x, timesteps, states).sample, x, timesteps)
        clean_without, without = clean_and_noise(teacher(x, timesteps, nothing).sample, x, timesteps)
        clean, own = clean + weight * (clean - clean_without), own + weight * (own - without)
        before = (timesteps - stride).clamp(min=0)
        target = consistent(wide(bar[before].sqrt()) * clean + wide((1 - bar[before]).sqrt()) * own, before)
    difference = consistent(x, timesteps) - target
    errors = ((difference**2 + 0.001**2).sqrt() - 0.001).mean((1, 2, 3))
    errors.mean().backward()
    return errors.detach().numpy(), {name: p.grad.numpy() for name, p in student.named_parameters()}


def test_loss_and_gradient_are_pytorchs(base):
    import diffusers
    import torch

    config = config_of(base)
    pipeline, parameters = make_model(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((BATCH, SIDE, SIDE, 8)).astype(np.float32)
    moments[..., 4:] = -30
    ids = ids_of(base, pipelines.REPORTS + pipelines.REPORTS[:2])
    keys = jax.random.split(jax.random.key(1), BATCH)
    kernels = sorted(name for name in parameters if name.startswith("unet.") and name.endswith(".kernel"))
    changed = dict(parameters)
    for name in kernels:  # as adapters would
        changed[name] = parameters[name] + 0.02 * rng.standard_normal(parameters[name].shape).astype(np.float32)
    whole = {**changed, **{adaptation.BASE + name: parameters[name] for name in kernels}}
    loss = make_loss(pipeline, config)

    @jax.jit
    def gradient(learning):
        def mean(learning):
            errors, _ = loss({**whole, **learning}, {"moments": moments, "input_ids": ids}, keys)
            return errors.mean(), errors

        return jax.grad(mean, has_aux=True)(learning)

    gradients, errors = gradient({name: changed[name] for name in kernels})

    student = diffusers.UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    named = dict(to_torch(name, np.asarray(value)) for name, value in changed.items() if name.startswith("unet."))
    student.load_state_dict({name.removeprefix("unet."): torch.tensor(value) for name, value in named.items()})
    encode = pipeline.with_parameters(parameters).text_encoder
    states, nothing = (torch.tensor(np.asarray(encode(each))) for each in (ids, ids_of(base, [""] * BATCH)))
    latents = moments[..., :4].transpose(0, 3, 1, 2) * pipeline.vae.config.scaling_factor
    rest = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)[1]
    drawn = consistency.draw(config, (SIDE, SIDE, 4), 1000, rest)
    wanted, slopes = reference(base, student, torch.tensor(latents), states, nothing, drawn, 20)
    np.testing.assert_allclose(errors, wanted, rtol=1e-5)
    for name, value in gradients.items():
        key, slope = to_torch(name, np.asarray(value))
        theirs = slopes[key.removeprefix("unet.")]
        np.testing.assert_allclose(slope, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def test_draws_are_of_the_teachers_steps(base):
    config = config_of(base, **{"distillation.teacher_steps": 4, "distillation.guidance": (2.0, 5.0)})
    drawn = consistency.draw(config, (1, 1, 1), 1000, jax.random.split(jax.random.key(0), 400))
    assert set(np.asarray(drawn.timesteps)) == {249, 499, 749, 999}
    assert 2 <= drawn.guidance.min() < 2.1 < 4.9 < drawn.guidance.max() < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": 0, "trainable": r"unet\..*"}, "whose base is the teacher; set config.lora.rank"),
        ({"trainable": r"unet\.conv_in\..*"}, "and config.trainable=''"),
        ({"distillation.teacher_steps": 0}, "teacher_steps=0: may be 1 to 1000"),
        ({"distillation.guidance": (7.0, 3.0)}, "give two scales, 1 or more, the lower first"),
        ({"distillation.guidance": (3.0,)}, "give two scales"),
    ],
)
def test_what_is_refused(base, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config_of(base, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
