import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.diffusion.guidance import classifier_free, guided

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, 4, 4, 2)), jnp.float32)


def unet(x, t, states):
    assert t.shape == x.shape[:1]
    return jnp.sin(x * states.mean(axis=(1, 2))[:, None, None, None]) + t[:, None, None, None] / 1000


def conditions(count):
    return jnp.asarray(RNG.standard_normal((count, 3, 5, 7)), jnp.float32) + 1


def parts(states):
    return [unet(X, jnp.full(3, 7), each) for each in states]


def test_guidance_is_the_weighted_difference():
    states = conditions(2)
    u, c = parts(states)
    found = guided(unet, states, classifier_free(4.0))(X, jnp.int32(7))
    np.testing.assert_allclose(found, u + 4 * (c - u), rtol=1e-5, atol=1e-5)


def test_a_single_condition_is_called_once():
    states = conditions(1)
    np.testing.assert_allclose(guided(unet, states, np.ones(1))(X, jnp.int32(7)), parts(states)[0])


def test_a_composition_adds_each_difference_by_its_weight():
    states = conditions(4)
    u, a, b, c = parts(states)
    found = guided(unet, states, classifier_free(3.0, (0.7, -0.3, 1.0)))(X, jnp.int32(7))
    np.testing.assert_allclose(found, u + 3 * (0.7 * (a - u) - 0.3 * (b - u) + (c - u)), rtol=1e-4, atol=1e-4)


def test_each_picture_may_have_weights_of_its_own():
    states = conditions(2)
    u, c = parts(states)
    weights = np.stack([classifier_free(scale) for scale in (1.0, 2.0, 5.0)], axis=1)
    found = guided(unet, states, weights)(X, jnp.int32(7))
    for row, scale in enumerate((1.0, 2.0, 5.0)):
        np.testing.assert_allclose(found[row], (u + scale * (c - u))[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescaling_equals_diffusers(rescale):
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    states = conditions(2)
    u, c = (torch.from_numpy(np.asarray(part)) for part in parts(states))
    expected = rescale_noise_cfg(u + 6 * (c - u), c, guidance_rescale=rescale).numpy()
    found = guided(unet, states, classifier_free(6.0), rescale)(X, jnp.int32(7))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
