"""The diffusion loss with networks of a line each, whose answer is known."""

import types

import jax
import jax.numpy as jnp
import pytest

from jaxcxr import config as configs
from jaxcxr.data import tokens
from jaxcxr.diffusion.objective import min_snr_weights
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.errors import UserError
from jaxcxr.methods.diffusion import make_loss
from tests.training import runs

SCHEDULE = Schedule(beta_schedule="scaled_linear")
BAR = jnp.asarray(SCHEDULE.alphas_cumprod())
# Latents that are zero: the noisy ones are noise alone, times sigma.
BATCH = {
    "moments": jnp.concatenate([jnp.zeros((64, 8, 8, 4)), jnp.full((64, 8, 8, 4), -30.0)], -1),
    "input_ids": jnp.zeros((64, 77), jnp.int32),
}
KEYS = jax.random.split(jax.random.key(0), 64)


def loss(unet, **changes):
    return float(jax.jit(lambda: value(unet, **changes))())


def value(unet, schedule=SCHEDULE, **changes):
    config = configs.load(runs.ROOT / "configs" / "base.py")
    config.objective.update(changes)
    networks = types.SimpleNamespace(
        unet=unet,
        vae=types.SimpleNamespace(config=types.SimpleNamespace(scaling_factor=1.0)),
        text_encoder=lambda ids: ids,
        schedule=schedule,
        tokenizer=tokens.load(runs.data() / "tokenizer"),
        with_parameters=lambda parameters: networks,
    )
    return make_loss(networks, config)({}, BATCH, KEYS)[0].mean()


def zero(noisy, timesteps, states):
    return jnp.zeros_like(noisy)


def shown(noisy, timesteps, states):
    """The noise that the network sees."""
    return noisy / jnp.sqrt(1 - BAR[timesteps])[:, None, None, None]


def test_a_network_that_sees_the_noise_has_no_error_unless_its_input_is_perturbed():
    assert loss(shown) < 1e-9
    assert loss(shown, input_perturbation=0.1) == pytest.approx(0.01, rel=0.05)
    assert loss(zero, input_perturbation=0.1) == pytest.approx(1, rel=0.02), "it is not asked for the perturbation"


def test_offset_noise_is_asked_for_and_is_one_number_a_channel():
    assert loss(zero) == pytest.approx(1, rel=0.02)
    assert loss(zero, offset_noise=2.0) == pytest.approx(5, rel=0.3)
    assert loss(shown, offset_noise=2.0) < 1e-9

    def level(noisy, timesteps, states):
        return jnp.broadcast_to(shown(noisy, timesteps, states).mean((1, 2), keepdims=True), noisy.shape)

    assert loss(level, offset_noise=2.0) == pytest.approx(1 - 1 / 64, rel=0.02), (
        "less a channel's mean, the noise is as without offset"
    )


def test_errors_are_weighted_and_timesteps_drawn_as_said():
    weights = min_snr_weights("epsilon", 5.0, BAR, jnp.arange(1000))
    assert loss(zero, min_snr_gamma=5.0) == pytest.approx(float(weights.mean()), rel=0.1)

    def late(noisy, timesteps, states):
        """Errs by 1 in the last quarter of the timesteps."""
        return shown(noisy, timesteps, states) + (timesteps >= 750)[:, None, None, None]

    assert loss(late) == pytest.approx(0.25, abs=0.12)
    assert loss(late, timestep_bias="later", timestep_bias_multiplier=1e6) == pytest.approx(1)
    assert loss(late, timestep_bias="earlier", timestep_bias_multiplier=1e6) < 1e-6
    with pytest.raises(UserError, match="timestep_bias='sooner': may be none, earlier, later"):
        loss(zero, timestep_bias="sooner")


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize(("gamma", "weight"), [(0.0, 1.0), (5.0, 0.0)])
def test_a_terminal_snr_of_zero_is_learnt_from(prediction_type, gamma, weight):
    rescaled = Schedule(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type=prediction_type)
    assert rescaled.alphas_cumprod()[-1] == 0
    last = {"timestep_bias": "later", "timestep_bias_portion": 0.001, "timestep_bias_multiplier": 1e9}

    def error(scale):
        """Of a network that gives back what it sees, noise alone, where it is asked for latents, which are 0."""
        return value(lambda noisy, timesteps, states: scale * noisy, rescaled, min_snr_gamma=gamma, **last)

    found, gradient = jax.value_and_grad(error)(1.0)
    assert (found, gradient) == pytest.approx((weight, 2 * weight), rel=0.05)
