import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion.objective import denoising_target, kl_to_standard_normal, per_example
from jaxcxr.diffusion.sampling import clean_and_noise
from jaxcxr.diffusion.schedule import Schedule, add_noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_output_gives_back_image_and_noise(prediction_type):
    bar = jnp.asarray(Schedule().alphas_cumprod())
    x, noise = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    t = jnp.array([1, 100, 500, 800, 950])
    target = denoising_target(prediction_type, bar, x, noise, t)
    found = clean_and_noise(prediction_type, add_noise(bar, x, noise, t), target, bar[t].reshape(-1, 1, 1, 1))
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
