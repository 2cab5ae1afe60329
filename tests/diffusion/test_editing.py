import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion import editing
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.diffusion.samplers import SAMPLERS
from jaxcxr.diffusion.samplers.base import normal

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SHAPE = (2, 6, 6, 3)
RNG = np.random.default_rng(0)
CLEAN, NOISE = RNG.standard_normal((2, *SHAPE)).astype(np.float32)
STATES = RNG.standard_normal((2, 2, 5, 7)).astype(np.float32) + 1
KEYS = jax.random.split(jax.random.key(5), 2)
NOTHING = np.zeros((2, 6, 6, 1), np.float32)
EDIT, KEEP = NOTHING.copy(), NOTHING.copy()
EDIT[:, :3, :3] = 1
KEEP[:, 4:] = 1


def unet(x, t, states):
    pull = states.mean(axis=(1, 2))[:, None, None, None]
    return 0.6 * jnp.sin(x * pull) + 0.3 * jnp.roll(x, 1, axis=2) * jnp.cos(t / 700)[:, None, None, None]


def edited(sampler, scale=3.0, edit_mask=EDIT, keep_mask=KEEP):
    weights = jnp.asarray(classifier_free(scale))
    masks = {"edit_mask": jnp.asarray(edit_mask), "keep_mask": jnp.asarray(keep_mask)}
    run = jax.jit(lambda: editing.edit(unet, jnp.asarray(STATES), weights, sampler, CLEAN, NOISE, KEYS, **masks))
    return np.asarray(run())


def ddpm(steps=20, begin=10):
    return SAMPLERS["ddim"](**SD).sampler(steps, begin, eta=1.0)


@pytest.mark.parametrize("sampler", [ddpm(), ddpm(begin=0), SAMPLERS["ddpm"](**SD).sampler(20, 10)])
def test_without_an_edit_the_image_comes_back(sampler):
    np.testing.assert_allclose(edited(sampler, edit_mask=NOTHING, keep_mask=NOTHING), CLEAN, atol=1e-5)
    # One condition's weight is 1: the prompt's prediction is nowhere used.
    np.testing.assert_allclose(edited(sampler, 0.0, NOTHING + 1, NOTHING), CLEAN, atol=1e-5)
    assert np.abs(edited(sampler, edit_mask=NOTHING + 1, keep_mask=NOTHING) - CLEAN).max() > 0.3


def test_what_is_kept_is_the_image_and_the_edit_changes_its_mask():
    found = edited(ddpm())
    np.testing.assert_array_equal(found[:, 4:], CLEAN[:, 4:])
    assert np.abs(found - CLEAN)[:, :3, :3].max() > 0.3


def test_an_edit_is_radedits():
    """Huberman-Spiegelglas et al.'s z_t, divided by σ_t, and RadEdit's masks, in NumPy and step by step."""
    bar = SAMPLERS["ddim"](**SD).alphas_cumprod().astype(np.float64)
    timesteps = np.arange(20)[::-1][10:] * 50

    def level(t):
        return bar[t] if t >= 0 else 1.0

    def predicted(x, t, condition):
        return np.asarray(unet(jnp.asarray(x, jnp.float32), jnp.full(2, t), STATES[condition]), np.float64)

    def mean(x, t, noise):
        here, after = level(t), level(t - 50)
        std = np.sqrt((1 - after) / (1 - here) * (1 - here / after))
        clean = (x - np.sqrt(1 - here) * noise) / np.sqrt(here)
        return np.sqrt(after) * clean + np.sqrt(1 - after - std**2) * noise, std

    noised = [np.sqrt(level(timesteps[0])) * CLEAN + np.sqrt(1 - level(timesteps[0])) * NOISE]
    for number, t in enumerate(timesteps):
        call = jax.vmap(lambda key, number=number: jax.random.fold_in(jax.random.fold_in(key, number), 1))(KEYS)
        own = np.asarray(normal(call, CLEAN), np.float64)
        noised.append(np.sqrt(level(t - 50)) * CLEAN + np.sqrt(1 - level(t - 50)) * own)
    x = noised[0]
    for number, t in enumerate(timesteps):
        before, after = noised[number : number + 2]
        u, c = predicted(x, t, 0), predicted(x, t, 1)
        noise = EDIT * (u + 3.0 * (c - u)) + (1 - EDIT) * u
        inverted, std = mean(before, t, predicted(before, t, 0))
        if std > 0:
            x = mean(x, t, noise)[0] + std * ((after - inverted) / std)
        else:
            x = mean(x, t, noise)[0] + after - inverted
        x = KEEP * after + (1 - KEEP) * x
    np.testing.assert_allclose(edited(ddpm()), x, atol=2e-4)


def test_further_channels_are_the_same_under_each_condition():
    channels = jnp.asarray(RNG.standard_normal((2, 6, 6, 2)), jnp.float32)

    def wide(x, t, states):
        assert x.shape == (4, 6, 6, 5)
        np.testing.assert_array_equal(x[..., 3:], np.concatenate([channels, channels]))
        return x[..., :3]

    x = jnp.concatenate([CLEAN, NOISE])
    np.testing.assert_array_equal(editing.with_channels(wide, channels)(x, jnp.zeros(4), None), x)


def test_a_mask_shrinks_to_the_values_at_corners():
    mask = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    assert editing.to_latent_size(mask, 3)[0, ..., 0].tolist() == [[0, 3], [18, 21]]
