import importlib
import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxcxr.diffusion import editing
from jaxcxr.diffusion.loop import sample
from jaxcxr.diffusion.samplers import SAMPLERS, read
from jaxcxr.diffusion.samplers.base import normal
from jaxcxr.errors import UserError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 6, 3)  # B, H, W, C
KEYS = jax.random.split(jax.random.key(7), 2)
NOISE = np.asarray(jax.random.normal(jax.random.key(3), SHAPE))
CLEAN = np.asarray(jax.random.normal(jax.random.key(4), SHAPE)) / 2
SPACINGS = ("linspace", "leading", "trailing")
STEPS = (1, 4, 10, 50)


def network(x, t, tanh, cos, roll):
    """A smooth stand-in for a network, in any array library."""
    return 0.7 * tanh(x + 0.2 * cos(t / 300.0)) + 0.25 * roll(x) * cos(t / 900.0)


def ours(sampler, start=None, after=None):
    def denoise(x, t):
        return network(x, t.astype(jnp.float32), jnp.tanh, jnp.cos, lambda a: jnp.roll(a, 1, axis=2))

    start = NOISE * np.float32(sampler.initial_scale) if start is None else start
    return np.asarray(jax.jit(lambda x: sample(denoise, sampler, x, KEYS, after))(start))


def theirs(scheduler, num_steps, monkeypatch, shared_noise, begin=0, mask=None):
    """What diffusers draws; from `CLEAN` as its image-to-image and inpainting pipelines do, with `begin` or a mask."""
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * scheduler.order)
    drawn = iter(shared_noise)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))
    noise, clean = (torch.from_numpy(value.transpose(0, 3, 1, 2).copy()) for value in (NOISE, CLEAN))
    x = scheduler.add_noise(clean, noise, timesteps[:1].repeat(2)) if begin else noise * init_noise_sigma(scheduler)
    for number, t in enumerate(timesteps, 1):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(seen, t.to(torch.float32), torch.tanh, torch.cos, lambda a: torch.roll(a, 1, dims=3))
        x = scheduler.step(output, t, x, return_dict=False)[0]
        if mask is not None:
            last = number == len(timesteps)
            kept = clean if last else scheduler.add_noise(clean, noise, timesteps[number : number + 1])
            x = (1 - mask) * kept + mask * x
    return x.numpy().transpose(0, 2, 3, 1)


def init_noise_sigma(scheduler):
    return getattr(scheduler, "init_noise_sigma", 1.0)


def noise_of_calls(count):
    """What our sampler draws at each call, as torch tensors (B, C, H, W)."""
    draws = [normal(jax.vmap(jax.random.fold_in, (0, None))(KEYS, i), NOISE) for i in range(count)]
    return [torch.from_numpy(np.asarray(draw).transpose(0, 3, 1, 2).copy()) for draw in draws]


def check(name, config, num_steps, monkeypatch, tolerance=1e-5):
    settings = read({"_class_name": SAMPLERS[name].scheduler, **config})
    sampler = settings.sampler(num_steps)
    config = {key: value for key, value in config.items() if value != "flow_prediction" or name != "flow-euler"}
    scheduler = getattr(diffusers, settings.scheduler)(**config)
    expected = theirs(scheduler, num_steps, monkeypatch, noise_of_calls(len(sampler.timesteps)))
    np.testing.assert_allclose(sampler.timesteps, scheduler.timesteps.numpy(), rtol=1e-6, atol=1e-4)
    found = ours(sampler)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def cases():
    for name, kind in SAMPLERS.items():
        if name in ("flow-euler",):
            continue
        spacings = SPACINGS if hasattr(kind, "timestep_spacing") else ("",)
        for prediction in kind.prediction_types:
            if prediction == "flow_prediction":
                continue
            for spacing in spacings:
                for steps in STEPS:
                    yield name, prediction, spacing, steps


@pytest.mark.parametrize(("name", "prediction", "spacing", "steps"), cases())
def test_every_sampler_draws_as_diffusers(name, prediction, spacing, steps, monkeypatch):
    config = {**SD, "prediction_type": prediction}
    if spacing:
        config["timestep_spacing"] = spacing
    if hasattr(SAMPLERS[name], "clip_sample"):
        config["clip_sample"] = False
    if name == "pndm":
        config["skip_prk_steps"] = True
    check(name, config, steps, monkeypatch)


V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
VARIANTS = [
    ("ddim", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.8}),
    ("ddim", {"clip_sample": False, **ZERO_SNR}),
    ("ddpm", {"clip_sample": False, "variance_type": "fixed_large", "steps_offset": 1}),
    ("ddpm", {"clip_sample": False, "variance_type": "fixed_small_log"}),
    ("ddpm", {"clip_sample": True}),
    ("ddpm", {"clip_sample": False, **ZERO_SNR}),
    ("pndm", {"skip_prk_steps": True, "set_alpha_to_one": True, "steps_offset": 1}),
    ("pndm", {"skip_prk_steps": False, "steps_offset": 1}),
    ("pndm", {"skip_prk_steps": False, "timestep_spacing": "trailing", **V}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("euler", {"use_exponential_sigmas": True}),
    ("euler", {"use_beta_sigmas": True, **V}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", ZERO_SNR),
    ("euler-ancestral", ZERO_SNR),
    ("euler-ancestral", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("heun", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    ("heun", {"use_exponential_sigmas": True, **V}),
    ("heun", {"clip_sample": True}),
    ("dpm++", {"use_karras_sigmas": True}),
    ("dpm++", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("dpm++", {"algorithm_type": "sde-dpmsolver++", **V}),
    ("dpm++", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("dpm++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("dpm++", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("dpm++", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun"}),
    ("dpm++", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("dpm++", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("dpm++", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun"}),
    ("dpm++", {"solver_type": "logrho"}),
    ("dpm++", {"solver_order": 3}),
    ("dpm++", {"solver_order": 3, "use_karras_sigmas": True, "lower_order_final": False}),
    ("dpm++", {"solver_order": 1}),
    ("dpm++", {"solver_type": "heun", "euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("dpm++", {"use_lu_lambdas": True}),
    ("dpm++", {"use_exponential_sigmas": True}),
    ("dpm++", {"use_beta_sigmas": True}),
    ("dpm++", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}),
    ("dpm++", ZERO_SNR),
    ("dpm++", {**FLOW, "flow_shift": 3.0}),
    ("unipc", {"use_karras_sigmas": True}),
    ("unipc", {"use_exponential_sigmas": True, **V}),
    ("unipc", {"use_beta_sigmas": True}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("unipc", {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"solver_type": "heun"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": False}),
    ("unipc", {"disable_corrector": (0, 1, 4)}),
    ("unipc", ZERO_SNR),
    ("unipc", {**FLOW, "flow_shift": 3.0}),
    ("unipc", FLOW),
    ("lcm", {"original_inference_steps": 100}),
    ("lcm", {"clip_sample": True, **V}),
    ("lcm", {"timestep_scaling": 5.0, "rescale_betas_zero_snr": True, **V}),
    ("flow-euler", {}),
    ("flow-euler", {"shift": 3.0}),
    ("flow-euler", {"shift": 3.0, "use_karras_sigmas": True}),
    ("flow-euler", {"use_exponential_sigmas": True}),
    ("flow-euler", {"shift": 2.0, "use_beta_sigmas": True}),
    ("flow-euler", {"shift": 3.0, "stochastic_sampling": True}),
]


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=lambda value: str(value))
def test_every_setting_draws_as_diffusers(name, config, steps, monkeypatch):
    # diffusers keeps Euler's x / α in float32, and α begins at 1 / 4096 with zero terminal SNR.
    tolerance = 1e-3 if name == "euler" and config is ZERO_SNR else 1e-5
    check(name, config if name == "flow-euler" else {**SD, **config}, steps, monkeypatch, tolerance)


BEGUN = [
    *((name, {}) for name in SAMPLERS if name not in ("flow-euler", "pndm")),
    ("pndm", {"skip_prk_steps": True}),
    ("pndm", {"skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "trailing"}),
    ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("euler", {"use_karras_sigmas": True}),
    ("dpm++", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("dpm++", {"solver_order": 3, "timestep_spacing": "trailing"}),
    ("unipc", {"solver_order": 3, "disable_corrector": (0, 6)}),
]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("begin", [1, 2, 6, 9])
@pytest.mark.parametrize(("name", "config"), BEGUN, ids=lambda value: str(value))
def test_every_sampler_edits_as_diffusers(name, config, begin, masked, monkeypatch):
    config = {**SD, **config}
    if hasattr(SAMPLERS[name], "clip_sample"):
        config["clip_sample"] = False
    settings = read({"_class_name": SAMPLERS[name].scheduler, **config})
    sampler = settings.sampler(10, begin)
    mask = np.zeros((1, 4, 6, 1), np.float32)
    mask[:, :3, 2:] = 1
    scheduler = getattr(diffusers, settings.scheduler)(**config)
    expected = theirs(
        scheduler,
        10,
        monkeypatch,
        noise_of_calls(len(sampler.timesteps)),
        begin,
        torch.from_numpy(mask.transpose(0, 3, 1, 2)) if masked else None,
    )
    start = np.asarray(editing.noised(CLEAN, NOISE, sampler))
    found = ours(sampler, start, editing.restore_outside(CLEAN, NOISE, mask) if masked else None)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_runge_kutta_steps_cannot_be_left_out():
    with pytest.raises(UserError, match="skip_prk_steps"):
        SAMPLERS["pndm"](skip_prk_steps=False).sampler(10, 1)


def test_ddim_adds_noise_as_diffusers(monkeypatch):
    settings = SAMPLERS["ddim"](**SD, clip_sample=False)
    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
    step = scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda *args, **kwargs: step(*args, eta=0.7, **kwargs))
    expected = theirs(scheduler, 10, monkeypatch, noise_of_calls(10))
    found = ours(settings.sampler(10, eta=0.7))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "config", "steps", "parts"),
    [
        ("ddim", {"thresholding": True}, 10, ("DDIMScheduler", "thresholding")),
        ("ddim", {}, 0, ("--steps 0", "1 to 1000")),
        ("ddim", {"steps_offset": 500}, 1000, ("steps_offset",)),
        ("ddpm", {"variance_type": "learned_range"}, 10, ("variance_type", "fixed_small")),
        ("euler", {"interpolation_type": "log_linear"}, 10, ("interpolation_type",)),
        ("euler", {"timestep_type": "continuous"}, 10, ("timestep_type",)),
        ("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, 10, ("use_karras_sigmas", "use_beta_sigmas")),
        ("pndm", {"skip_prk_steps": False}, 3, ("--steps 3", "4")),
        ("dpm++", {"algorithm_type": "dpmsolver"}, 10, ("algorithm_type", "sigma_min")),
        ("dpm++", {"prediction_type": "flow_prediction"}, 10, ("use_flow_sigmas",)),
        ("dpm++", {"variance_type": "learned"}, 10, ("variance_type",)),
        ("unipc", {"lower_order_final": False}, 10, ("lower_order_final",)),
        ("unipc", {"solver_order": 4}, 10, ("solver_order",)),
        ("unipc", {"solver_type": "bh1"}, 10, ("solver_type", "sigma_min")),
        ("lcm", {}, 51, ("--steps 51", "50")),
        ("flow-euler", {"use_dynamic_shifting": True}, 10, ("use_dynamic_shifting",)),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name, config, steps, parts):
    with pytest.raises(UserError) as error:
        SAMPLERS[name](**config).sampler(steps)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_lead_from_noise_to_the_image(name):
    settings = SAMPLERS[name]()
    sampler = settings.sampler(10)
    assert len(sampler.levels) == len(sampler.timesteps) + 1
    assert sampler.levels[-1].tolist() == [1.0, 0.0]
    alpha, sigma = sampler.levels.T
    total = alpha + sigma if name == "flow-euler" else alpha**2 + sigma**2
    np.testing.assert_allclose(total, 1, atol=1e-12)


OTHERS = {
    "num_train_timesteps": [500],
    "beta_start": [0.001],
    "beta_end": [0.01],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"],
    "trained_betas": [np.linspace(0.001, 0.02, 1000).tolist()],
    "prediction_type": ["v_prediction", "sample", "flow_prediction"],
    "timestep_spacing": ["leading", "trailing"],
    "steps_offset": [1, 3],
    "variance_type": ["fixed_large", "fixed_large_log", "learned_range"],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "algorithm_type": ["sde-dpmsolver++", "dpmsolver"],
    "solver_type": ["heun", "bh1"],
    "solver_order": [1, 3],
    "solver_p": [],  # no value that a file can hold
    "sigma_min": [0.1],
    "sigma_max": [9.0],
    "lambda_min_clipped": [-5.1],
    "final_sigmas_type": ["sigma_min"],
    "disable_corrector": [(0,)],
    "time_shift_type": ["linear"],
    "shift_terminal": [0.1],
    "original_inference_steps": [100],
}
# Honoured only beside another key, which is refused or walked through with it in VARIANTS.
BESIDE = {
    *("dynamic_thresholding_ratio", "sample_max_value", "base_shift", "max_shift", "base_image_seq_len"),
    *("max_image_seq_len", "time_shift_type", "clip_sample_range"),
}


def keys():
    for name, kind in SAMPLERS.items():
        for key, parameter in inspect.signature(getattr(diffusers, kind.scheduler).__init__).parameters.items():
            if key == "self" or key in BESIDE:
                continue
            default = parameter.default
            others = OTHERS.get(key) or [not default if isinstance(default, bool | None) else default * 2]
            for value in others if key not in ("solver_p",) else ():
                yield pytest.param(name, key, value, id=f"{name}-{key}-{str(value)[:12]}")


@pytest.mark.parametrize(("name", "key", "value"), keys())
def test_a_key_of_a_file_is_honoured_as_diffusers_does_or_refused_by_name(name, key, value, monkeypatch):
    config = {"_class_name": SAMPLERS[name].scheduler, key: value}
    refusal = ""
    try:
        read(config).sampler(5)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert key in refusal
        return
    plain = {"clip_sample": False} if hasattr(SAMPLERS[name], "clip_sample") and key != "clip_sample" else {}
    check(name, plain | {key: value}, 5, monkeypatch, 1e-3 if "zero_snr" in key else 1e-5)
