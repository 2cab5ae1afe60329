"""The further terms of an autoencoder's loss, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import to_torch
from jaxcxr.methods import make_loss
from jaxcxr.training.model import make_model
from tests import pipelines
from tests.evaluation import torch_lpips
from tests.training import runs

torch = pytest.importorskip("torch")
SIDE, BATCH, WIDTH = 32, 3, 8


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("base") / "pipeline")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 1), np.uint8)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """AlexNet's layers with random weights, and the files of them and of random heads."""
    features = torch_lpips.backbone("alex")
    return features, *torch_lpips.save(tmp_path_factory.mktemp("lpips"), "alex", features)


def config_of(base, perceptual, **changes):
    config = configs.load(runs.ROOT / "configs" / "vae.py")
    config.model.base = str(base)
    config = runs.small(config, {"optimizer.warmup_steps": 0, "data.size": SIDE, **changes})
    with config.unlocked():
        config.objective.perceptual = ConfigDict(perceptual)
        config.model.discriminator = ConfigDict({"width": WIDTH})
    return config


def discriminator():
    """CompVis' `NLayerDiscriminator` of three layers, written out."""
    nn = torch.nn
    layers = [nn.Conv2d(1, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
        layers += [nn.Conv2d(before * WIDTH, after * WIDTH, 4, stride, 1, bias=False), nn.BatchNorm2d(after * WIDTH)]
        layers.append(nn.LeakyReLU(0.2))
    module = nn.Module()
    module.main = nn.Sequential(*layers, nn.Conv2d(8 * WIDTH, 1, 4, 1, 1))
    return module


def gradients(value, module, network):
    """Those of a module's parameters, by full name."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True)
    return {f"{network}.{name}": slope.numpy() for name, slope in zip(names, found, strict=True)}


def loaded(module, parameters, network):
    """A module of PyTorch with our parameters of a network."""
    named = dict(to_torch(name, np.asarray(value)) for name, value in parameters.items() if name.startswith(network))
    state = {name.removeprefix(f"{network}."): torch.tensor(value) for name, value in named.items()}
    missing = module.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return module


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_both_gradients_are_pytorchs(base, lpips, images, reduction):
    import diffusers

    ssim = pytest.importorskip("pytorch_msssim").ssim
    terms = {"ssim": 0.5, "lpips": 0.3, "features": 0.2, "adversarial": 0.3}
    features, backbone, heads = lpips
    files = ConfigDict({"net": "alex", "backbone": str(backbone), "heads": str(heads)})
    config = config_of(base, terms, **{"objective.reduction": reduction, "model.lpips": files})
    pipeline, parameters = make_model(config, jax.random.key(0))
    own = {name: value for name, value in parameters.items() if name.startswith(("vae.", "discriminator."))}
    keys = jax.random.split(jax.random.key(1), BATCH)
    loss = make_loss(pipeline, config)

    def mean(own):
        errors, shown = loss({**parameters, **own}, {"image": images}, keys)
        return errors.mean(), shown

    (value, shown), slopes = jax.jit(jax.value_and_grad(mean, has_aux=True))(own)

    vae = diffusers.AutoencoderKL.from_pretrained(base, subfolder="vae")
    critic = loaded(discriminator(), parameters, "discriminator").train()
    image = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = vae.encode(image).latent_dist
    drawn = jax.vmap(lambda key: jax.random.normal(key, (SIDE // 2, SIDE // 2, 4)))(keys)
    made = vae.decode(posterior.mean + posterior.std * torch.tensor(np.asarray(drawn)).permute(0, 3, 1, 2)).sample
    colour = [each.expand(-1, 3, -1, -1) for each in (made, image)]
    distances = [torch_lpips.distance("alex", features, each, *colour).mean() for each in (torch.load(heads), None)]
    error = (made - image).abs().mean() + 0.5 * (1 - ssim(made / 2 + 0.5, image / 2 + 0.5, data_range=1.0))
    error = error + 0.3 * distances[0] + 0.2 * distances[1]
    error = error * (SIDE**2 if reduction == "sum" else 1)
    adversarial = -critic.main(made).mean()
    last = vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (error, adversarial)]
    weight = torch.clamp(norms[0] / (norms[1] + 1e-4), 0, 1e4).detach()
    of_vae = error + 1e-6 * posterior.kl().mean() + 0.3 * weight * adversarial
    hinge = torch.nn.functional.relu
    of_critic = 0.5 * (hinge(1 - critic.main(image)).mean() + hinge(1 + critic.main(made.detach())).mean())
    assert float(shown["weight"]) == pytest.approx(weight.item(), rel=1e-4)
    assert float(value) == pytest.approx((of_vae + of_critic).item(), rel=1e-5)

    wanted = gradients(of_vae, vae, "vae") | gradients(of_critic, critic, "discriminator")
    found = dict(to_torch(name, np.asarray(slope)) for name, slope in slopes.items())
    assert set(found) - set(wanted) == {name for name in found if name.endswith(("running_mean", "running_var"))}
    for name, slope in wanted.items():
        np.testing.assert_allclose(found[name], slope, atol=2e-4 * np.abs(slope).max() + 1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("perceptual", "changes", "message"),
    [
        ({"lpip": 1.0}, {}, "perceptual.lpip: no such term; there are ssim, lpips, features, adversarial"),
        ({"lpips": 1.0}, {}, "config.model.lpips.backbone: is empty, and the loss has a term of it"),
        ({"features": 1.0}, {"model.lpips": ConfigDict({"file": "x"})}, "config.model.lpips: has 'file'; it may have"),
        ({"adversarial": 1.0}, {"data.size": 16}, "16 x 16 pixels; a discriminator needs 24 or more a side"),
        ({"adversarial": 1.0}, {"accumulation": 2}, "accumulation=2: is 1 with an adversarial term"),
        ({"ssim": 1.0}, {"objective.reduction": "max"}, "reduction='max': may be mean or sum"),
    ],
)
def test_what_is_refused(base, perceptual, changes, message):
    config = config_of(base, perceptual, **changes)

    def traced():
        pipeline, parameters = make_model(config, jax.random.key(0))
        batch = {"image": jnp.zeros((2, config.data.size, config.data.size, 1), jnp.uint8)}
        jax.eval_shape(make_loss(pipeline, config), parameters, batch, jax.random.split(jax.random.key(0), 2))

    with pytest.raises(UserError, match=message):
        traced()
