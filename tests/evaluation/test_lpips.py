import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from jaxcxr.errors import UserError
from jaxcxr.evaluation import perceptual
from jaxcxr.models.features.lpips import Lpips
from jaxcxr.models.named import named_parameters, with_parameters
from tests.evaluation.torch_lpips import LAYERS, backbone, distance, save

torch = pytest.importorskip("torch")


def images(channels=3, height=66, width=70):
    draw = np.random.default_rng(0)
    first = draw.uniform(-1, 1, (2, height, width, channels)).astype(np.float32)
    second = np.clip(first + draw.normal(0, [[[[0.1]]], [[[0.5]]]], first.shape), -1, 1).astype(np.float32)
    return first, second


def nchw(array):
    return torch.tensor(np.broadcast_to(array, (*array.shape[:3], 3)).transpose(0, 3, 1, 2).copy())


def by_definition(net, features, heads, first, second):
    with torch.no_grad():
        return distance(net, features, heads, nchw(first), nchw(second)).numpy()


def ours(net, weights, first, second):
    module = Lpips(net, rngs=nnx.Rngs(0))
    return np.asarray(jax.jit(lambda weights, a, b: with_parameters(module, weights)(a, b))(weights, first, second))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("net", LAYERS)
def test_distances_are_those_of_the_definition(net, channels, tmp_path):
    features = backbone(net)
    files = save(tmp_path, net, features)
    first, second = images(channels)
    wanted = by_definition(net, features, torch.load(files[1]), first, second)
    found = ours(net, perceptual.read(net, *files), first, second)
    assert found.shape == (2,)
    assert found.dtype == np.float32
    assert wanted[1] > 1.5 * wanted[0] > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.fixture
def package(monkeypatch):
    """The package lpips, with the layers above in the place of torchvision's."""
    models, whole = types.ModuleType("torchvision.models"), types.ModuleType("torchvision")
    for name, net in (("alexnet", "alex"), ("vgg16", "vgg")):
        setattr(models, name, lambda pretrained, net=net: types.SimpleNamespace(features=backbone(net)))
    whole.models = models
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", whole)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    yield pytest.importorskip("lpips", reason="lpips is not installed")
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("net", LAYERS)
def test_distances_with_the_packages_heads_are_the_packages(net, package, tmp_path):
    file, _ = save(tmp_path, net, backbone(net))
    first, second = images()
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    with torch.no_grad():
        wanted = theirs(nchw(first), nchw(second)).numpy().ravel()
    found = ours(net, perceptual.read(net, file), first, second)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_pairs_of_bytes_are_measured_in_batches(tmp_path):
    files = save(tmp_path, "alex", backbone("alex"))
    weights = perceptual.read("alex", *files)
    first, second = np.random.default_rng(1).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8)
    second[1] = first[1]
    found = perceptual.distances("alex", weights, first, second, batch_size=2)
    alone = ours("alex", weights, *(each[..., None] / np.float32(127.5) - 1 for each in (first, second)))
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert found[1] == 0
    np.testing.assert_allclose(perceptual.distances("alex", weights, second, first), found, rtol=1e-5)


@pytest.mark.parametrize("net", LAYERS)
def test_the_names_are_those_of_torchvision_and_the_package(net):
    named = named_parameters(nnx.eval_shape(lambda: Lpips(net, rngs=nnx.Rngs(0))))
    places = [place for place, layer in enumerate(LAYERS[net]) if isinstance(layer, tuple)]
    wanted = {f"features.{place}.{leaf}" for place in places for leaf in ("kernel", "bias")}
    assert set(named) == wanted | {f"lin{index}.model.1.kernel" for index in range(5)}


def test_heads_are_found_in_a_package_that_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "lpips" / "weights" / "v0.1").mkdir(parents=True)
    (tmp_path / "lpips" / "__init__.py").write_text("raise SystemExit('was run')")
    file = tmp_path / "lpips" / "weights" / "v0.1" / "alex.pth"
    file.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)
    assert perceptual.bundled("alex") == file
    assert perceptual.bundled("vgg") is None


def test_what_cannot_be_read_or_measured_is_told(tmp_path, monkeypatch):
    alex, heads = save(tmp_path, "alex", backbone("alex"))

    def refused(message, call):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)

    refused("LPIPS net 'squeeze': .*alex or vgg", lambda: perceptual.read("squeeze", alex, heads))
    refused("no such file", lambda: perceptual.read("alex", tmp_path / "none.pth", heads))
    refused("is of another network", lambda: perceptual.read("vgg", alex, heads))
    refused(r"heads.pth: has no features\.\*.*alexnet-owt-7be5be79.pth", lambda: perceptual.read("alex", heads, heads))
    refused(r"backbone.pth: has no lin\*.*weights/v0.1/alex.pth", lambda: perceptual.read("alex", alex, alex))
    monkeypatch.setattr(perceptual, "bundled", lambda net: None)
    refused("install the package lpips", lambda: perceptual.read("alex", alex))
    weights, small = perceptual.read("alex", alex, heads), np.zeros((1, 30, 40), np.uint8)
    refused("30 x 40 pixels; LPIPS .alex. needs 31", lambda: perceptual.distances("alex", weights, small, small))
    refused("give .B, H, W, 1. or", lambda: ours("alex", weights, *np.zeros((2, 1, 40, 40, 2), np.float32)))
