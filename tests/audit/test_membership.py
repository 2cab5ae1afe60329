"""Errors of a tiny model against diffusers' DDIM in PyTorch, forwards and inverted; the rates of attacks."""

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.audit import membership
from jaxcxr.audit.membership import LOSSES, attack, errors, true_positives_at
from jaxcxr.audit.prompts import conditional_noise, stripped
from jaxcxr.errors import UserError
from tests import pipelines

TEXTS = ["Small left pleural effusion.", "No acute cardiopulmonary process.", "Bilateral ___ effusions."]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of diffusers, and the same in JAX."""
    folder = pipelines.write(tmp_path_factory.mktemp("model") / "m", prediction_type="v_prediction")
    return folder, interop.load(folder)


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16), np.uint8)


def in_torch(folder):
    """diffusers' pipeline, the scaled latents of the images and the states of the texts."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pixels = torch.tensor(images()[:, None] / 127.5 - 1, dtype=torch.float32)
    with torch.inference_mode():
        latents = theirs.vae.encode(pixels).latent_dist.mean * theirs.vae.config.scaling_factor
        states = states_of(theirs, TEXTS)
    return torch, diffusers, theirs, latents, states


def states_of(theirs, texts):
    length = theirs.tokenizer.model_max_length
    ids = theirs.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return theirs.text_encoder(ids.input_ids)[0]


def test_secmi_is_diffusers_inversion_and_one_step_back(pipeline, tmp_path):
    folder, ours = pipeline
    torch, diffusers, theirs, x, states = in_torch(folder)
    config = {**theirs.scheduler.config, "steps_offset": 0}
    inverse, forward = diffusers.DDIMInverseScheduler.from_config(config), diffusers.DDIMScheduler.from_config(config)
    inverse.set_timesteps(100)
    forward.set_timesteps(100)
    with torch.inference_mode():

        def unet(x, t):
            return theirs.unet(x, t, encoder_hidden_states=states).sample

        def further(x, t):  # diffusers counts a step of the inversion by where it ends
            return inverse.step(unet(x, t), t + 10, x).prev_sample

        for t in range(0, 100, 10):
            x = further(x, t)
        after = further(x, 100)
        back = forward.step(unet(after, 110), 110, after).prev_sample
        wanted = ((back - x) ** 2).mean(dim=(1, 2, 3)).numpy()
    found = errors(ours, images(), TEXTS, tmp_path)["secmi"]
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    assert wanted.std() > 0.01 * wanted.mean()


def test_loss_is_the_mean_over_timesteps_with_noise_that_is_fixed(pipeline, tmp_path):
    import jax

    folder, ours = pipeline
    torch, _, theirs, x, states = in_torch(folder)
    bar, wanted = theirs.scheduler.alphas_cumprod, np.zeros(3)
    for part in range(LOSSES):
        t = 1000 * (2 * part + 1) // (2 * LOSSES)
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(7), place), t) for place in range(3)]
        noise = np.stack([np.asarray(jax.random.normal(key, (8, 8, 4))) for key in keys]).transpose(0, 3, 1, 2)
        noise = torch.tensor(noise.copy())
        signal, sigma = bar[t].sqrt(), (1 - bar[t]).sqrt()
        with torch.inference_mode():
            output = theirs.unet(signal * x + sigma * noise, t, encoder_hidden_states=states).sample
        wanted += ((output - (signal * noise - sigma * x)) ** 2).mean(dim=(1, 2, 3)).numpy() / LOSSES
    np.testing.assert_allclose(errors(ours, images(), TEXTS, tmp_path, seed=7)["loss"], wanted, rtol=1e-4)


def test_conditional_noise_is_that_of_a_loop_with_diffusers_ddim(pipeline, tmp_path):
    import jax

    folder, ours = pipeline
    torch, diffusers, theirs, _, states = in_torch(folder)
    forward = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    forward.set_timesteps(5)
    start = np.asarray(jax.random.normal(jax.random.key(3), (8, 8, 4))).transpose(2, 0, 1)
    x, norms = torch.tensor(np.stack([start] * 3)), []
    with torch.inference_mode():
        empty = states_of(theirs, [""] * 3)
        for t in forward.timesteps:
            conditional, unconditional = (
                theirs.unet(x, t, encoder_hidden_states=each).sample for each in (states, empty)
            )
            difference = conditional - unconditional
            scale = forward.alphas_cumprod[t].sqrt()  # ε = α v + σ x
            norms.append((scale * difference).flatten(1).norm(dim=1))
            x = forward.step(unconditional + 7.5 * difference, t, x).prev_sample
    wanted = torch.stack(norms).mean(dim=0).numpy()
    found = conditional_noise(ours, TEXTS, tmp_path, steps=5, seed=3)
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


@pytest.mark.slow
def test_batches_and_restarts_change_nothing(pipeline, tmp_path, monkeypatch):
    _, ours = pipeline
    monkeypatch.setattr(membership, "PER_SHARD", 2)
    first = errors(ours, images(5), [*TEXTS, "", "x"], tmp_path, batch_size=2)
    (folder,) = tmp_path.iterdir()
    (folder / "00001.npz").unlink()
    again = errors(ours, images(5), [*TEXTS, "", "x"], tmp_path, batch_size=2)
    for name in membership.ATTACKS:
        np.testing.assert_array_equal(first[name], again[name])
    other = errors(ours, images(5), [*TEXTS, "", "x"], tmp_path / "other", batch_size=4)
    np.testing.assert_allclose(other["secmi"], first["secmi"], rtol=1e-3)


def test_a_model_without_a_text_encoder_is_refused(pipeline, tmp_path):
    folder, _ = pipeline
    with pytest.raises(UserError, match="no text_encoder"):
        errors(interop.load(folder, only=("unet", "vae")), images(), TEXTS, tmp_path)


def test_true_positives_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for count in (50, 300):
        labels = draw.random(count) < 0.5
        scores = draw.standard_normal(count).round(1) + labels
        false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        for rate in (0.0, 0.01, 0.1, 0.5):
            assert true_positives_at(labels, scores, rate) == pytest.approx(true[false <= rate].max())


def test_an_attack_finds_members_by_low_errors_at_rates_that_the_numbers_allow():
    draw = np.random.default_rng(0)
    members, others = draw.normal(-2, 1, 150), draw.normal(0, 1, 150)
    found = attack("loss", members, others, np.arange(300))
    assert found.auc == pytest.approx((members[:, None] < others).mean())
    assert found.low < found.auc < found.high
    assert list(found.found) == [0.01]
    assert found.found[0.01] == pytest.approx((members < np.sort(others)[1]).mean())
    assert attack("loss", members[:20], others[:20], np.arange(40)).found == {}


def test_a_prompt_without_its_marker():
    assert stripped("___ year old with ____, no effusion.") == "year old with , no effusion."
    assert stripped("_ a __ b") == "_ a __ b"
