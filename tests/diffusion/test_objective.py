import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion.objective import (
    denoising_target,
    kl_to_standard_normal,
    min_snr_weights,
    per_example,
    timestep_weights,
)
from jaxcxr.diffusion.process import PREDICTIONS
from jaxcxr.diffusion.schedule import Schedule, add_noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_output_gives_back_image_and_noise(prediction_type):
    bar = jnp.asarray(Schedule().alphas_cumprod())
    x, noise = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    t = jnp.array([1, 100, 500, 800, 950])
    target = denoising_target(prediction_type, bar, x, noise, t)
    level = bar[t].reshape(-1, 1, 1, 1)
    noisy = add_noise(bar, x, noise, t)
    found = PREDICTIONS[prediction_type].read(noisy, target, jnp.sqrt(level), jnp.sqrt(1 - level))
    np.testing.assert_allclose(found[0], x, atol=2e-3)
    np.testing.assert_allclose(found[1], noise, atol=2e-3)


def test_errors_are_means_over_each_example():
    prediction = jnp.stack([jnp.zeros((2, 2, 1)), jnp.full((2, 2, 1), 3.0)])
    target = jnp.ones((2, 2, 2, 1))
    np.testing.assert_allclose(per_example("mse", prediction, target), [1, 4])
    np.testing.assert_allclose(per_example("l1", prediction, target), [1, 2])
    assert per_example("mse", prediction.astype(jnp.bfloat16), target).dtype == jnp.float32


def test_kl_equals_diffusers():
    torch, vae = pytest.importorskip("torch"), pytest.importorskip("diffusers.models.autoencoders.vae")
    moments = np.random.default_rng(0).standard_normal((3, 8, 4, 4), dtype=np.float32)
    theirs = vae.DiagonalGaussianDistribution(torch.from_numpy(moments)).kl()
    mean, logvar = np.split(moments.transpose(0, 2, 3, 1), 2, axis=-1)
    np.testing.assert_allclose(kl_to_standard_normal(mean, logvar), theirs, rtol=1e-5)


def test_huber_equals_pytorch():
    torch = pytest.importorskip("torch")
    prediction, target = np.random.default_rng(0).normal(scale=2, size=(2, 3, 4, 4, 2)).astype(np.float32)
    theirs = torch.nn.functional.huber_loss(*map(torch.from_numpy, (prediction, target)), reduction="none", delta=1.0)
    np.testing.assert_allclose(per_example("huber", prediction, target), theirs.mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_diffusers_scripts(prediction_type, gamma):
    torch, training = pytest.importorskip("torch"), pytest.importorskip("diffusers.training_utils")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = np.arange(1000)
    snr = training.compute_snr(scheduler, torch.from_numpy(timesteps)).numpy()
    divided = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    bar = scheduler.alphas_cumprod.numpy()
    ours = min_snr_weights(prediction_type, gamma, jnp.asarray(bar), timesteps)
    np.testing.assert_allclose(ours, np.minimum(snr, gamma) / divided, rtol=2e-4)


@pytest.mark.parametrize(
    ("prediction_type", "ends"), [("epsilon", (1, 0)), ("v_prediction", (0, 0)), ("sample", (0, 5))]
)
def test_min_snr_weights_have_limits_where_the_snr_is_zero_or_infinite(prediction_type, ends):
    weights = min_snr_weights(prediction_type, 5.0, jnp.array([0.0, 1.0]), jnp.array([0, 1]))
    np.testing.assert_allclose(weights, ends, atol=1e-6)
    rescaled = Schedule(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod()
    assert np.isfinite(min_snr_weights(prediction_type, 5.0, jnp.asarray(rescaled), np.arange(1000))).all()


def test_biased_timesteps_are_drawn_more_often():
    assert np.allclose(timestep_weights("none", 3.0, 0.25, 8), 1 / 8)
    earlier = timestep_weights("earlier", 3.0, 0.25, 8)
    assert np.allclose(earlier, np.array([3, 3, 1, 1, 1, 1, 1, 1]) / 12)
    assert np.allclose(timestep_weights("later", 3.0, 0.25, 8), earlier[::-1])
