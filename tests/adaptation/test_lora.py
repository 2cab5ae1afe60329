"""Adapters against peft: the forward pass and one update, on values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxcxr import adaptation, interop
from jaxcxr import config as configs
from jaxcxr.adaptation import lora
from jaxcxr.errors import UserError
from jaxcxr.interop.layout import from_torch, to_torch
from tests import pipelines
from tests.training import runs

ATTENTION = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)"
BROAD = r"unet\..*\.(attn[12]\.(to_[qkv]|to_out\.0)|proj_in|conv1|conv_shortcut|time_emb_proj|ff\.net\.0\.proj)"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("peft")
    return pipelines.write(tmp_path_factory.mktemp("lora") / "base")


def config_of(**changes) -> ConfigDict:
    config = configs.load(runs.ROOT / "configs" / "base.py")
    config.trainable = ""
    config.lora.update(changes)
    return config


def inputs(torch):
    rng = np.random.default_rng(3)
    latents, states = rng.standard_normal((2, 4, 8, 8), np.float32), rng.standard_normal((2, 7, 32), np.float32)
    target = rng.standard_normal((2, 4, 8, 8), np.float32)
    return latents, np.array([3, 700]), states, target


@pytest.mark.parametrize(
    ("targets", "dora", "alpha"), [(ATTENTION, "", 0.0), (BROAD, "", 6.0), (ATTENTION, ".*", 6.0), (BROAD, ".*", 2.0)]
)
def test_forward_and_one_update_are_pefts(source, targets, dora, alpha):
    import peft
    import torch
    from diffusers import UNet2DConditionModel

    pipeline = interop.load(source, only=("unet",))
    parameters = pipeline.parameters()
    learning = adaptation.of(config_of(rank=3, alpha=alpha, targets=targets, dora=dora), parameters)
    learnt = learning.start(parameters, jax.random.key(0))
    # B is zero at first, and what would be wrong with it would not be seen.
    draw = np.random.default_rng(1)
    learnt = {
        name: value + 0.1 * draw.standard_normal(value.shape, np.float32) if ".lora_" in name else value
        for name, value in learnt.items()
    }
    frozen = learning.frozen(parameters)

    theirs = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    layers = [layer.removeprefix("unet.") for layer in learning.parts["lora"].layers]
    chosen = peft.LoraConfig(r=3, lora_alpha=alpha or 3, target_modules=layers, use_dora=bool(dora))
    theirs.add_adapter(chosen)
    given = {}
    for name, value in learnt.items():
        if name.endswith(lora.MAGNITUDE):
            axes = (1, -1, 1, 1) if f"{name.removesuffix(lora.MAGNITUDE)}kernel" in four_axes(parameters) else (-1,)
            given[f"{name.removeprefix('unet.')}.default.weight"] = np.asarray(value).reshape(axes)
        else:
            key, weight = to_torch(name, np.asarray(value))
            given[key.removeprefix("unet.").replace(".weight", ".default.weight")] = weight
    own = {name: value for name, value in theirs.state_dict().items() if "lora_" in name}
    assert own.keys() == given.keys()
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in given.items()}, strict=False)

    latents, timesteps, states, target = inputs(torch)

    def mean_error(learnt):
        unet = pipeline.with_parameters(learning.expand(learnt, frozen)).unet
        output = unet(jnp.moveaxis(latents, 1, -1), jnp.asarray(timesteps), states)
        return jnp.square(output - jnp.moveaxis(target, 1, -1)).mean(), output

    (value, output), gradients = jax.jit(jax.value_and_grad(mean_error, has_aux=True))(learnt)
    updates, _ = optax.sgd(0.5).update(gradients, optax.sgd(0.5).init(learnt))
    after = optax.apply_updates(learnt, updates)

    found = theirs(torch.from_numpy(latents), torch.from_numpy(timesteps), torch.from_numpy(states)).sample
    loss = torch.nn.functional.mse_loss(found, torch.from_numpy(target))
    trained = [value for name, value in theirs.named_parameters() if "lora_" in name]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    loss.backward()
    optimizer.step()

    scale = found.abs().max().item()
    np.testing.assert_allclose(np.moveaxis(output, -1, 1), found.detach().numpy(), rtol=1e-5, atol=1e-5 * scale)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    state = theirs.state_dict()
    moved = 0.0
    for name, value in after.items():
        if name.endswith(lora.MAGNITUDE):
            theirs_now = state[f"{name.removeprefix('unet.')}.default.weight"].numpy().reshape(-1)
        else:
            key = to_torch(name, np.asarray(value))[0].removeprefix("unet.").replace(".weight", ".default.weight")
            weight = state[key].numpy()
            theirs_now = from_torch(key.replace(".default", ""), weight)[1]
        np.testing.assert_allclose(value, theirs_now, rtol=1e-5, atol=1e-5)
        moved = max(moved, float(np.abs(np.asarray(value) - learnt[name]).max()))
    assert moved > 1e-3, "the update is more than the tolerance"


def four_axes(parameters) -> set[str]:
    return {name for name, value in parameters.items() if value.ndim == 4}


def test_nothing_is_changed_before_the_first_step(source):
    parameters = interop.load(source, only=("unet",)).parameters()
    learning = adaptation.of(config_of(rank=2, dora=".*"), parameters)
    learnt = learning.start(parameters, jax.random.key(1))
    expanded = learning.expand(learnt, learning.frozen(parameters))
    assert expanded.keys() == parameters.keys()
    for name, value in expanded.items():
        np.testing.assert_allclose(value, parameters[name], rtol=1e-6, atol=1e-7)
    assert sum(np.size(value) for value in learnt.values()) < 0.1 * sum(np.size(value) for value in parameters.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2, "targets": "unet.nothing"}, r"config\.lora\.targets='unet\.nothing': no layer has such a name"),
        ({"rank": 2, "targets": "unet("}, r"config\.lora\.targets='unet\(': not a regular expression"),
        ({"rank": 2, "dora": "vae.*"}, r"config\.lora\.dora='vae\.\*': no layer has such a name"),
        ({"rank": -1}, r"config\.lora.*rank"),
        ({"rank": 2, "alpha": -1.0}, r"config\.lora.*alpha"),
    ],
)
def test_settings_that_do_not_fit_are_told(source, changes, message):
    parameters = interop.read(source, only=("unet",)).tensors
    with pytest.raises(UserError, match=message):
        adaptation.of(config_of(**changes), parameters)


def test_a_layer_does_not_learn_twice(source):
    parameters = interop.read(source, only=("unet",)).tensors
    config = config_of(rank=2)
    config.trainable = r"unet\..*"
    with pytest.raises(UserError, match=r"config\.trainable=.*: selects unet\..*, which config\.lora changes"):
        adaptation.of(config, parameters)
    config.trainable = r"unet\.conv_in\..*"
    assert adaptation.of(config, parameters).names == {"unet.conv_in.kernel", "unet.conv_in.bias"}
