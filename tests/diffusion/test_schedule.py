import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxcxr.diffusion.schedule import Schedule, add_noise, velocity
from jaxcxr.errors import UserError

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
CONFIGS = {
    "ddpm": {},
    "sd1": {**SD1, "set_alpha_to_one": False, "steps_offset": 1},
    "sd2-v": {**SD1, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
    "trailing": {**SD1, "timestep_spacing": "trailing", "prediction_type": "sample"},
    "short": {"num_train_timesteps": 50, "trained_betas": np.linspace(0.001, 0.1, 50).tolist()},
}


def reference(config):
    return pytest.importorskip("diffusers").DDIMScheduler(**config)


@pytest.mark.parametrize("name", CONFIGS)
def test_alphas_cumprod_equal_diffusers_bit_for_bit(name):
    theirs = reference(CONFIGS[name])
    ours = Schedule.from_config(dict(theirs.config))
    np.testing.assert_array_equal(ours.alphas_cumprod(), theirs.alphas_cumprod.numpy())
    np.testing.assert_array_equal(ours.betas(), theirs.betas.numpy())


def test_zero_terminal_snr(monkeypatch):
    # PyTorch's own root is MKL's, on AMD's CPUs a unit in the last place off.
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy())))
    config = {**SD1, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    ours, theirs = Schedule.from_config(config).alphas_cumprod(), reference(config).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2e-7, atol=1e-12)
    assert ours[-1] == 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_timesteps_equal_diffusers(name, steps):
    theirs = reference(CONFIGS[name])
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(Schedule.from_config(CONFIGS[name]).timesteps(steps), theirs.timesteps.numpy())


def test_too_many_steps_are_refused():
    with pytest.raises(UserError, match="1 to 1000"):
        Schedule().timesteps(1001)


def test_too_many_steps_for_the_offset_are_refused():
    schedule = Schedule.from_config(CONFIGS["sd1"])
    with pytest.raises(UserError, match="--steps 1000: .* steps_offset of 1, would begin at timestep 1000 of 1000"):
        schedule.timesteps(1000)
    assert schedule.timesteps(500)[0] == 999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_has_so_many_timesteps(spacing):
    schedule = Schedule(timestep_spacing=spacing)
    for count in range(1, 1001):
        steps = schedule.timesteps(count)
        assert len(steps) == count
        assert 0 <= steps.min() <= steps.max() < 1000


@pytest.mark.parametrize(
    ("key", "value"), [("beta_schedule", "sigmoid"), ("prediction_type", "score"), ("thresholding", True)]
)
def test_what_is_not_supported_is_named(key, value):
    with pytest.raises(UserError, match=f"{key}={value!r}"):
        Schedule.from_config({key: value})


def test_config_round_trip_through_diffusers():
    schedule = Schedule.from_config(CONFIGS["sd2-v"])
    theirs = reference(schedule.to_config())
    assert Schedule.from_config(dict(theirs.config)) == schedule


def test_noise_and_velocity_equal_diffusers():
    torch = pytest.importorskip("torch")
    schedule, theirs = Schedule.from_config(CONFIGS["sd2-v"]), reference(CONFIGS["sd2-v"])
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 6, 4, 4, 3), dtype=np.float32)
    t = np.array([0, 1, 250, 500, 998, 999], np.int32)
    bar = jnp.asarray(schedule.alphas_cumprod())
    args = (torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t).long())
    np.testing.assert_allclose(add_noise(bar, x, noise, t), theirs.add_noise(*args), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(velocity(bar, x, noise, t), theirs.get_velocity(*args), rtol=1e-6, atol=1e-6)


def test_noise_is_float32_for_bfloat16_latents():
    bar = jnp.asarray(Schedule().alphas_cumprod())
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)).astype(jnp.bfloat16)
    assert add_noise(bar, x, x, jnp.array([0, 999])).dtype == jnp.float32
