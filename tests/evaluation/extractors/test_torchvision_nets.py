import functools
import importlib
import importlib.util
import math
import re
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.torchvision_nets import DENSENET_121, RESNET_18, RESNET_50, imagenet
from jaxcxr.interop import layout
from jaxcxr.models.features.densenet import DenseNet
from jaxcxr.models.features.resnet import resnet18, resnet50
from jaxcxr.models.named import named_parameters, with_parameters
from tests.evaluation.extractors.towers import near, noise, run, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional

NETS = {
    "densenet121": (DENSENET_121, DenseNet),
    "resnet18": (RESNET_18, resnet18),
    "resnet50": (RESNET_50, resnet50),
}


small_densenet = functools.partial(DenseNet, block_config=(1, 2))


@pytest.fixture(scope="module")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    # A build for another kind of device lacks the operators that this module describes.
    stub = types.ModuleType("torchvision._meta_registrations")
    with mock.patch.dict(sys.modules, {stub.__name__: stub}):
        yield importlib.import_module("torchvision")


def state_of(network, seed=0):
    """Values for a network, by their PyTorch names, with which its outputs depend on every norm."""
    rng = np.random.default_rng(seed)
    draws = {
        "kernel": lambda shape: rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape),
        "scale": lambda shape: rng.uniform(0.5, 1.5, shape),
        "bias": lambda shape: rng.normal(0, 0.3, shape),
        "mean": lambda shape: rng.normal(0, 0.3, shape),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
    }
    state = {}
    for name, value in named_parameters(nnx.eval_shape(lambda: network(nnx.Rngs(0)))).items():
        drawn = draws[name.rpartition(".")[2]](value.shape).astype(np.float32)
        own, array = layout.to_torch(name, drawn)
        state[own] = torch.from_numpy(np.ascontiguousarray(array))
    return state


def module_of(network, weights):
    values = {name: jnp.asarray(value) for name, value in weights.items()}
    return with_parameters(nnx.eval_shape(lambda: network(nnx.Rngs(0))), values)


def images(count=2, size=224, channels=3, scale=1.0):
    """Images of different coarse patterns and contrasts, as equal textures would give features almost the same."""
    rng = np.random.default_rng(1)
    coarse = rng.normal(0, scale, (count, 7, 7, channels)).repeat(size // 7, 1).repeat(size // 7, 2)
    contrast = np.linspace(0.5, 2, count)[:, None, None, None]
    return (contrast * coarse + rng.normal(0, scale / 2, coarse.shape)).astype(np.float32)


def norm(state, name, x):
    moments = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm(x, *moments)


def densenet_by_hand(state, x):
    def activated(name, x):
        return norm(state, name, x).relu()

    x = functional.conv2d(x, state["features.conv0.weight"], stride=2, padding=3)
    x = functional.max_pool2d(activated("features.norm0", x), 3, 2, 1)
    for block in range(1, 5):
        layer = 1
        while f"features.denseblock{block}.denselayer{layer}.conv1.weight" in state:
            name = f"features.denseblock{block}.denselayer{layer}"
            y = functional.conv2d(activated(f"{name}.norm1", x), state[f"{name}.conv1.weight"])
            y = functional.conv2d(activated(f"{name}.norm2", y), state[f"{name}.conv2.weight"], padding=1)
            x, layer = torch.cat([x, y], 1), layer + 1
        if block < 4:
            name = f"features.transition{block}"
            x = functional.conv2d(activated(f"{name}.norm", x), state[f"{name}.conv.weight"])
            x = functional.avg_pool2d(x, 2)
    return activated("features.norm5", x).mean((2, 3))


def save(state, file):
    torch.save(state, file)
    return file


def test_densenet_is_what_torch_computes(tmp_path):
    state = state_of(DENSENET_121.network)
    weights = DENSENET_121.read(save(state, tmp_path / "densenet121.pth"))
    found = run(DENSENET_121, weights, images())
    assert found.shape == (2, DENSENET_121.width)
    near(found, densenet_by_hand(state, to_torch(images())).numpy())


def of_transformers(name):
    """torchvision's name of a ResNet's parameter -> transformers'."""
    kinds, parts = {"conv": "convolution", "bn": "normalization"}, ["convolution", "normalization"]
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{kinds[stem[1]]}.{stem[2]}"
    layer, block, rest = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", name).groups()
    if shortcut := re.fullmatch(r"downsample\.(\d)\.(\w+)", rest):
        inner = f"shortcut.{parts[int(shortcut[1])]}.{shortcut[2]}"
    else:
        kind, number, leaf = re.fullmatch(r"(conv|bn)(\d)\.(\w+)", rest).groups()
        inner = f"layer.{int(number) - 1}.{kinds[kind]}.{leaf}"
    return f"encoder.stages.{int(layer) - 1}.layers.{block}.{inner}"


@pytest.mark.parametrize(("name", "kind"), [("resnet18", "basic"), ("resnet50", "bottleneck")])
def test_resnets_are_transformers(tmp_path, name, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    extractor, _ = NETS[name]
    state = state_of(extractor.network)
    sizes = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    depths = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
    config = transformers.ResNetConfig(layer_type=kind, hidden_sizes=sizes, depths=depths)
    theirs = transformers.ResNetModel(config).eval()
    missing, unexpected = theirs.load_state_dict(
        {of_transformers(key): value for key, value in state.items()}, strict=False
    )
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    found = run(extractor, extractor.read(save(state, tmp_path / "a.pth")), images())
    assert found.shape == (2, extractor.width)
    with torch.no_grad():
        near(found, theirs(to_torch(images())).pooler_output[:, :, 0, 0].numpy())


@pytest.mark.parametrize("name", NETS)
def test_features_and_logits_are_torchvisions(tmp_path, torchvision, name):
    extractor, network = NETS[name]
    state = state_of(lambda rngs: network(classes=1000, rngs=rngs))
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict(state, strict=False)
    whole = tmp_path / "whole.pth"
    torch.save(theirs, whole)
    weights = extractor.read(save(theirs.state_dict(), tmp_path / "state.pth"))
    from_whole = extractor.read(whole)
    assert weights.keys() == from_whole.keys()
    assert all((weights[key] == from_whole[key]).all() for key in weights)
    features = run(extractor, weights, images())
    head = {"densenet121": "classifier", "resnet18": "fc", "resnet50": "fc"}[name]
    with torch.no_grad():
        expected = theirs(to_torch(images())).numpy()
        ours = module_of(lambda rngs: network(classes=1000, rngs=rngs), {**weights, **head_of(state, head)})
        near(np.asarray(ours.logits(jnp.asarray(features))), expected)
        setattr(theirs, head, torch.nn.Identity())
        near(features, theirs(to_torch(images())).numpy())


def head_of(state, head):
    return {f"{head}.kernel": state[f"{head}.weight"].numpy().T, f"{head}.bias": state[f"{head}.bias"].numpy()}


@pytest.mark.parametrize(("network", "head"), [(small_densenet, "classifier"), (resnet18, "fc")])
def test_a_fresh_network_with_a_classifier(network, head):
    ours = network(in_channels=1, classes=5, rngs=nnx.Rngs(0))
    features = jax.jit(lambda values: ours(values))(images(2, 56, 1))
    assert 0.05 < np.std(features) < 20  # the initial kernels keep the scale of what goes through
    kernel, bias = (named_parameters(ours)[f"{head}.{leaf}"] for leaf in ("kernel", "bias"))
    assert kernel.shape == (features.shape[1], 5)
    np.testing.assert_allclose(ours.logits(features), features @ kernel + bias, rtol=1e-4, atol=1e-5)
    without = nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0)))
    assert not [name for name in named_parameters(without) if name.startswith(head)]
    with pytest.raises(ValueError, match="has no classifier"):
        without.logits(features)


def test_the_names_of_torchvisions_densenet_file(tmp_path):
    state = state_of(DENSENET_121.network)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in state.items()}
    assert "features.denseblock4.denselayer16.norm.2.running_var" in old
    state["features.norm0.num_batches_tracked"] = torch.tensor(1)
    new = DENSENET_121.read(save(state | {"classifier.bias": torch.ones(1000)}, tmp_path / "new.pth"))
    read = DENSENET_121.read(save(old, tmp_path / "old.pth"))
    assert new.keys() == read.keys()
    assert all((new[name] == read[name]).all() for name in new)


def test_safetensors_are_read_and_other_networks_refused(tmp_path):
    state = state_of(RESNET_18.network)
    save_file({name: value.numpy() for name, value in state.items()}, tmp_path / "a.safetensors")
    read = RESNET_18.read(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read["layer4.1.bn2.var"], state["layer4.1.bn2.running_var"].numpy())
    np.testing.assert_array_equal(
        read["layer4.0.downsample.0.kernel"], state["layer4.0.downsample.0.weight"].numpy().transpose(2, 3, 1, 0)
    )
    with pytest.raises(UserError, match="is of another network"):
        RESNET_50.read(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no such file"):
        RESNET_50.read(tmp_path / "absent.pth")


@pytest.mark.parametrize(("width", "height"), [(300, 500), (500, 301), (256, 256), (100, 97), (1033, 257)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_preprocessing_is_torchvisions(torchvision, width, height, mode):
    importlib.import_module("torchvision.transforms._presets")
    preset = torchvision.transforms._presets.ImageClassification(crop_size=224)
    theirs = preset(noise(width, height, mode).convert("RGB")).numpy().transpose(1, 2, 0)
    found = imagenet(noise(width, height, mode))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_preprocessing_by_hand():
    found = imagenet(Image.new("RGB", (400, 300), (10, 100, 250)))
    expected = (np.array([10, 100, 250]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert found.shape == (224, 224, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)
    # 512 x 256 is not resized: the crop begins at row 16 and column 144.
    image = noise(512, 256, "L")
    shown = imagenet(image)[:, :, 0] * 0.229 + 0.485
    np.testing.assert_allclose(shown * 255, np.asarray(image)[16:240, 144:368], atol=1e-3)
