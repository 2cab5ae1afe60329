import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.diffusion.sampling import ddim, sample
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.errors import UserError
from tests import pipelines

SD1 = pipelines.SCHEDULER
CONFIGS = {
    "epsilon": SD1,
    "v": {**SD1, "prediction_type": "v_prediction"},
    "sample": {**SD1, "prediction_type": "sample", "set_alpha_to_one": True},
    "clipped": {"clip_sample_range": 0.7},
    "trailing": {**SD1, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "zero-snr": {
        **SD1,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
}


def output(xp, x, t):
    """A stand-in for a network: smooth, and different at every timestep."""
    return 0.6 * xp.sin(2 * x) + 0.3 * x * (t / 1000) + 0.05


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_equals_diffusers(name, steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4), dtype=np.float32)
    theirs = diffusers.DDIMScheduler(**CONFIGS[name])
    theirs.set_timesteps(steps)
    x = torch.from_numpy(noise)
    for t in theirs.timesteps:
        x = theirs.step(output(torch, x, t), t, x).prev_sample
    sampler = ddim(Schedule.from_config(CONFIGS[name]), steps)
    keys = jax.random.split(jax.random.key(0), 2)
    ours = jax.jit(lambda n: sample(lambda x, t: output(jnp, x, t), sampler, n, keys))(noise)
    error = np.linalg.norm(ours - x.numpy()) / np.linalg.norm(x.numpy())
    assert error < 1e-5, error


def test_noise_that_tells_nothing_is_not_started_from():
    schedule = {**CONFIGS["zero-snr"], "prediction_type": "epsilon"}
    with pytest.raises(UserError, match="'epsilon' from noise alone .* draws nothing; it may be 'v_prediction'"):
        ddim(Schedule.from_config(schedule), 10)
    ddim(Schedule.from_config({**schedule, "timestep_spacing": "leading"}), 10)  # begins before that


def test_eta_adds_ddpm_variance():
    """One step with a network that says nothing: x moves by the sampler's noise, whose spread diffusers gives."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    schedule = Schedule.from_config(SD1)
    sampler = ddim(schedule, 20, eta=1.0)
    theirs = diffusers.DDIMScheduler(**SD1)
    theirs.set_timesteps(20)
    for index in (0, 10, 18):
        t = int(theirs.timesteps[index])
        variance = theirs._get_variance(t, t - 50)
        np.testing.assert_allclose(sampler.coefficients.sigma[index], variance**0.5, rtol=1e-5)
    x = np.zeros((1, 64, 64, 4), np.float32)
    row = jax.tree.map(lambda c: c[10], sampler.coefficients)
    moved, _ = sampler.step(x, jnp.zeros_like(x), row, jax.random.key(1)[None], ())
    np.testing.assert_allclose(np.std(moved), row.sigma, rtol=0.03)
    with torch.no_grad():
        still = theirs.step(torch.zeros(1), theirs.timesteps[10], torch.zeros(1), eta=0.0).prev_sample
    assert float(still) == 0


def test_guidance_is_the_weighted_difference():
    def unet(x, t, states):
        assert t.shape == x.shape[:1]
        return x * 0 + states.mean(axis=(1, 2))[:, None, None, None]

    x, states = jnp.zeros((3, 2, 2, 1)), jnp.full((3, 5, 7), 2.0)
    guided = classifier_free(unet, states, jnp.full((3, 5, 7), 0.5), 4.0)(x, jnp.int32(3))
    np.testing.assert_allclose(guided, np.full((3, 2, 2, 1), 0.5 + 4 * 1.5))
    np.testing.assert_allclose(classifier_free(unet, states, states, 1.0)(x, jnp.int32(3)), 2.0)
