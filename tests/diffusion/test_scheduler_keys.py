"""Every key of every scheduler class that is drawn: as diffusers honours it, or refused by name."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion.sampling import ddim, sample
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.diffusion.scheduler_classes import DRAWN
from jaxcxr.errors import UserError

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

STEPS = 5
OTHERS = {
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"],
    "prediction_type": ["v_prediction", "sample"],
    "timestep_spacing": ["trailing", "linspace"],
    "variance_type": ["fixed_large", "learned_range"],
    "trained_betas": [np.linspace(0.001, 0.02, 1000).tolist()],
    "num_train_timesteps": [500],
    "steps_offset": [1, 3],
    "beta_start": [0.001],
    "beta_end": [0.01],
}


def others(key, default):
    if key in OTHERS:
        return OTHERS[key]
    return [not default] if isinstance(default, bool) else [default * 0.5, default * 2]


def keys():
    for name in DRAWN:
        for key, parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.items():
            if key != "self":
                for value in others(key, parameter.default):
                    yield pytest.param(name, key, value, id=f"{name}-{key}-{str(value)[:12]}")


def theirs(name, key, value):
    """DDIM's arithmetic on what diffusers' own object of the class has: its betas, timesteps and ends."""
    scheduler = getattr(diffusers, name)(**{key: value})
    scheduler.set_timesteps(STEPS)
    config, bar = scheduler.config, scheduler.alphas_cumprod.numpy()
    # PNDM visits a timestep twice; DDIM has no use for that.
    steps = np.sort(scheduler._timesteps)[::-1] if name == "PNDMScheduler" else scheduler.timesteps.numpy()
    reference = diffusers.DDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        clip_sample=config.get("clip_sample", False),
        clip_sample_range=config.get("clip_sample_range", 1.0),
        thresholding=config.get("thresholding", False),
        dynamic_thresholding_ratio=config.get("dynamic_thresholding_ratio", 0.995),
        sample_max_value=config.get("sample_max_value", 1.0),
        prediction_type=config.prediction_type,
    )
    reference.alphas_cumprod = scheduler.alphas_cumprod
    last = getattr(scheduler, "final_alpha_cumprod", getattr(scheduler, "one", None))
    reference.final_alpha_cumprod = last
    reference.set_timesteps(STEPS)
    x = torch.from_numpy(NOISE)
    for step in steps:
        x = reference.step(0.9 * x + 0.1, int(step), x).prev_sample
    return x.numpy(), bar


NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 3), dtype=np.float32)


@pytest.mark.parametrize(("name", "key", "value"), keys())
def test_a_key_is_honoured_as_diffusers_does_or_refused_by_name(name, key, value):
    refusal = None
    try:
        schedule = Schedule.from_config({"_class_name": name, key: value})
        sampler = ddim(schedule, STEPS)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert key in refusal
        return
    ours = sample(lambda x, t: 0.9 * x + 0.1, sampler, jnp.asarray(NOISE), jax.random.split(jax.random.key(0), 2))
    picture, bar = theirs(name, key, value)
    np.testing.assert_allclose(schedule.alphas_cumprod(), bar, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(ours, picture, rtol=2e-4, atol=2e-5)


def test_what_draws_is_said_where_it_is_another_sampler():
    notices = {name: Schedule.from_config({"_class_name": name}).notice for name in DRAWN}
    assert notices.pop("DDIMScheduler") is None
    assert all(name in notice and "DDIM" in notice for name, notice in notices.items())
