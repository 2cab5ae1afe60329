"""Stable Diffusion 1.5's and 2.1's networks, whole, against diffusers and transformers on random weights.

Needs 20 GB of memory and, on two cores, the better part of an hour, so it runs only when asked for:

    XLA_FLAGS= python -m pytest tests/models/test_full_size.py --full-size -s
"""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from jaxcxr.models import (  # noqa: E402
    AutoencoderKL,
    CLIPTextModel,
    UNet2DConditionModel,
    abstract,
    split_moments,
    with_parameters,
)
from tests.models.test_names import SD15_TEXT, SD15_UNET, SD21_TEXT, SD21_UNET, SD_VAE  # noqa: E402
from tests.models.test_parity import draw, in_our_layout, nchw, nhwc, randomize, relative  # noqa: E402

pytestmark = pytest.mark.full_size


@pytest.fixture(autouse=True)
def _memory():
    yield
    gc.collect()
    jax.clear_caches()


def report(what: str, error: float, bar: float) -> None:
    print(f"\n{what}: {error:.3g}")
    assert error <= bar


@pytest.mark.parametrize("config", [SD15_UNET, SD21_UNET], ids=["sd1.5", "sd2.1"])
def test_unet_output(config, request):
    """At 64² latents in float32, and in bfloat16, held against float32 and diffusers' own bfloat16."""
    name = request.node.callspec.id
    theirs = diffusers.UNet2DConditionModel(**config).eval()
    params = randomize(theirs)
    sample, timesteps, context = unet_inputs(config, 64)
    inputs = nchw(sample), torch.from_numpy(timesteps), torch.from_numpy(context)
    with torch.no_grad():
        expected = nhwc(theirs(*inputs).sample)
        half = theirs.bfloat16()(*(x.bfloat16() if x.is_floating_point() else x for x in inputs)).sample
    theirs_half = relative(nhwc(half.float()), expected)
    del theirs, inputs

    model = abstract(UNet2DConditionModel, config)
    ours = jax.jit(lambda params: with_parameters(model, params)(sample, timesteps, context))(params)
    report(f"{name} U-Net, float32 output", relative(ours, expected), 1e-5)
    halved = abstract(UNet2DConditionModel, config, jnp.bfloat16)
    ours = jax.jit(lambda params: with_parameters(halved, params)(sample, timesteps, context))(params)
    error = relative(np.asarray(ours, np.float32), expected)
    print(f"\n{name} U-Net, diffusers' bfloat16: {theirs_half:.3g}")
    # XLA rounds a product before it adds the bias on CPUs, PyTorch after it: a few percent of the error.
    report(f"{name} U-Net, bfloat16 output", error, min(0.02, 1.05 * theirs_half))


@pytest.mark.parametrize("config", [SD15_UNET, SD21_UNET], ids=["sd1.5", "sd2.1"])
def test_unet_gradient(config, request):
    """In float32 at 32² latents: at 64² the two libraries' activations do not fit beside the gradients."""
    theirs = diffusers.UNet2DConditionModel(**config).eval()
    params = randomize(theirs)
    sample, timesteps, context = unet_inputs(config, 32)
    weights = draw(1, 32, 32, 4, seed=2)
    output = theirs(nchw(sample), torch.from_numpy(timesteps), torch.from_numpy(context)).sample
    (output * nchw(weights)).sum().backward()
    expected = in_our_layout(theirs, lambda parameter: parameter.grad)
    params = {key: jnp.asarray(value) for key, value in params.items()}
    del theirs, output
    gc.collect()

    model = abstract(UNet2DConditionModel, config)

    def loss(params):
        return jnp.sum(with_parameters(model, params)(sample, timesteps, context) * weights)

    ours = jax.jit(jax.grad(loss))(params)
    total = np.sqrt(sum(np.linalg.norm(g.astype(np.float64)) ** 2 for g in expected.values()))
    errors = {key: np.linalg.norm(np.asarray(ours[key]) - g) for key, g in expected.items()}
    together = float(np.linalg.norm(list(errors.values())) / total)
    report(f"{request.node.callspec.id} U-Net, gradient, all parameters together", together, 1e-4)
    # A gradient far below the others is the difference of large terms, and holds their rounding.
    worst = max(errors[key] / (np.linalg.norm(g) + 1e-6 * total) for key, g in expected.items())
    report(f"{request.node.callspec.id} U-Net, gradient, worst parameter", float(worst), 1e-4)


def unet_inputs(config: dict, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(1, size, size, 4), np.array([501]), draw(1, 77, config["cross_attention_dim"], seed=1)


def test_vae():
    theirs = diffusers.AutoencoderKL(**SD_VAE).eval()
    params = randomize(theirs)
    model = abstract(AutoencoderKL, SD_VAE)
    image, latents = draw(1, 512, 512, 3), draw(1, 64, 64, 4, seed=1)
    with torch.no_grad():
        moments = nhwc(theirs.encode(nchw(image)).latent_dist.parameters)
        decoded = nhwc(theirs.decode(nchw(latents)).sample)
    ours = jax.jit(lambda params: with_parameters(model, params).encode(image))(params)
    report("VAE, encoded at 512²", relative(np.concatenate(split_moments(ours), -1), moments), 1e-5)
    ours = jax.jit(lambda params: with_parameters(model, params).decode(latents))(params)
    report("VAE, decoded at 512²", relative(ours, decoded), 1e-5)


@pytest.mark.parametrize("config", [SD15_TEXT, SD21_TEXT], ids=["CLIP-L", "OpenCLIP-H"])
def test_text_encoder(config, request):
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
    params = randomize(theirs)
    model = abstract(CLIPTextModel, config)
    ids = np.random.default_rng(0).integers(0, 49406, (2, 77))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    ours = jax.jit(lambda params: with_parameters(model, params)(ids))(params)
    report(request.node.callspec.id, relative(ours, expected), 1e-5)
