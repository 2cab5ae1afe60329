import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxcxr.diffusion import scheduler_classes
from jaxcxr.diffusion.objective import denoising_target
from jaxcxr.diffusion.samplers import DDIM, SAMPLERS, changed, read
from jaxcxr.diffusion.schedule import Schedule, add_noise
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
    np.testing.assert_array_equal(read(CONFIGS[name]).sampler(steps).timesteps, theirs.timesteps.numpy())


def test_too_many_steps_are_refused():
    with pytest.raises(UserError, match="1 to 1000"):
        DDIM().sampler(1001)


def test_too_many_steps_for_the_offset_are_refused():
    settings = read(CONFIGS["sd1"])
    with pytest.raises(UserError, match="--steps 1000: .* steps_offset of 1, would visit timestep 1000 of 1000"):
        settings.sampler(1000)
    assert settings.sampler(500).timesteps[0] == 999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_has_so_many_timesteps(spacing):
    settings = DDIM(timestep_spacing=spacing)
    for count in range(1, 1001):
        steps = settings.sampler(count).timesteps
        assert len(steps) == count
        assert 0 <= steps.min() <= steps.max() < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("_class_name", "EDMEulerScheduler"),
        ("_class_name", ["DDIMScheduler"]),
    ],
)
def test_what_is_not_supported_is_named(key, value):
    with pytest.raises(UserError, match=rf"scheduler_config.json: {key}.{re.escape(repr(value))}"):
        Schedule.from_config({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("beta_start", value) for value in (float("nan"), float("inf"), 0.0, 1e-300, 1.0, -0.1, True, "x", 10**400)),
        *(("beta_end", value) for value in (float("nan"), 0, 1, None)),
        *(("num_train_timesteps", value) for value in (0, 1, -1, 10**6, 1000.5, None)),
        ("trained_betas", [0.1, float("nan")]),
        ("trained_betas", [0.1] * 999),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "score"),
    ],
)
def test_numbers_that_make_no_noise_are_refused_by_key(key, value):
    with pytest.raises(
        UserError, match=rf"scheduler_config\.json: .*{key}|scheduler_config\.json: Number out of range"
    ):
        Schedule.from_config({key: value})


def test_betas_that_leave_noise_alone_are_refused():
    schedule = Schedule.from_config({"trained_betas": [0.999] * 50, "num_train_timesteps": 50})
    with pytest.raises(UserError, match="too large"):
        schedule.alphas_cumprod()


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"thresholding": True}, "thresholding=True"),
        ({"timestep_spacing": "karras"}, "timestep_spacing"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"clip_sample": "no"}, "clip_sample"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type='learned'"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "prediction_type='sample'"),
        ({"_class_name": "KDPM2DiscreteScheduler"}, "KDPM2DiscreteScheduler"),
    ],
)
def test_what_cannot_be_drawn_can_be_trained_with(config, part):
    assert np.isfinite(Schedule.from_config(config).alphas_cumprod()).all()
    with pytest.raises(UserError, match=re.escape(part)):
        read(config).sampler(10)


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"flow-euler"}))
def test_another_sampler_takes_the_files_keys(name):
    file = {"_class_name": "KDPM2DiscreteScheduler", "beta_end": 0.013, "prediction_type": "v_prediction"}
    settings = read(file, name)
    assert (settings.beta_end, settings.prediction_type) == (0.013, "v_prediction")
    assert settings.beta_start == type(settings)().beta_start


def test_flow_matching_is_refused_by_its_key():
    with pytest.raises(UserError, match="use_flow_sigmas=True"):
        Schedule.from_config({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True})


def test_a_class_has_its_own_defaults_and_leaves_other_classes_keys_aside():
    assert not hasattr(read({"_class_name": "PNDMScheduler", "clip_sample": True}), "clip_sample")
    assert read({"_class_name": "HeunDiscreteScheduler"}).beta_end == 0.012
    assert Schedule.from_config({"_class_name": "HeunDiscreteScheduler"}).beta_end == 0.012
    assert read({"clip_sample": False, "_use_default_values": ["clip_sample"]}).clip_sample


@pytest.mark.parametrize("name", scheduler_classes.CLASSES)
def test_betas_of_every_class_are_those_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    cls = getattr(diffusers, name)
    assert scheduler_classes.CLASSES[name].noise.keys() <= inspect.signature(cls.__init__).parameters.keys()
    theirs = cls()
    np.testing.assert_array_equal(Schedule.from_config({"_class_name": name}).betas(), theirs.betas.numpy())
    np.testing.assert_array_equal(Schedule.from_config(dict(theirs.config, _class_name=name)).betas(), theirs.betas)
    for key, other in {"beta_end": 0.01, "beta_schedule": "scaled_linear", "num_train_timesteps": 500}.items():
        ours = Schedule.from_config({"_class_name": name, key: other})
        np.testing.assert_array_equal(ours.betas(), cls(**{key: other}).betas.numpy(), err_msg=key)


def test_changed_keys_keep_the_files_class_where_it_has_them():
    euler = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    assert changed(euler, {"prediction_type": "v_prediction"}) == euler | {"prediction_type": "v_prediction"}
    pndm = {"_class_name": "PNDMScheduler", "steps_offset": 1, "beta_end": 0.012, "set_alpha_to_one": False}
    found = changed(pndm, {"rescale_betas_zero_snr": True})
    assert found["_class_name"] == "DDIMScheduler"
    assert (found["steps_offset"], found["beta_end"], found["clip_sample"]) == (1, 0.012, False)
    assert found["set_alpha_to_one"] is False
    with pytest.raises(UserError, match="betas_start"):
        changed({}, {"betas_start": 0.1})


def test_another_class_may_be_named():
    ddim = {"_class_name": "DDIMScheduler", "beta_end": 0.012, "clip_sample": False}
    found = changed(ddim, {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True})
    assert read(found) == SAMPLERS["dpm++"](beta_end=0.012, use_karras_sigmas=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_configs_go_through_diffusers_and_back(name):
    import diffusers

    theirs = getattr(diffusers, SAMPLERS[name].scheduler)()
    settings = read(json.loads(theirs.to_json_string()))  # with -Infinity, as Python writes it
    assert settings == SAMPLERS[name]()
    again = type(theirs).from_config({k: v for k, v in settings.to_config().items() if k in theirs.config})
    written = [{k: v for k, v in each.config.items() if k[0] != "_"} for each in (again, theirs)]
    assert written[0] == written[1]


def test_noise_and_velocity_equal_diffusers():
    torch = pytest.importorskip("torch")
    schedule, theirs = Schedule.from_config(CONFIGS["sd2-v"]), reference(CONFIGS["sd2-v"])
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 6, 4, 4, 3), dtype=np.float32)
    t = np.array([0, 1, 250, 500, 998, 999], np.int32)
    bar = jnp.asarray(schedule.alphas_cumprod())
    args = (torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t).long())
    np.testing.assert_allclose(add_noise(bar, x, noise, t), theirs.add_noise(*args), rtol=1e-6, atol=1e-6)
    found = denoising_target("v_prediction", bar, x, noise, t)
    np.testing.assert_allclose(found, theirs.get_velocity(*args), rtol=1e-6, atol=1e-6)


def test_noise_is_float32_for_bfloat16_latents():
    bar = jnp.asarray(Schedule().alphas_cumprod())
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)).astype(jnp.bfloat16)
    assert add_noise(bar, x, x, jnp.array([0, 999])).dtype == jnp.float32
