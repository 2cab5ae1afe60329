import importlib.machinery
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.evaluation.extractors.inception import INCEPTION
from jaxcxr.models.named import with_parameters
from tests.evaluation.extractors.towers import near, radiographs

torch = pytest.importorskip("torch")
from tests.evaluation.extractors import inception_reference as reference  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
PACKAGES = ("torchvision", "torch_fidelity", "torchmetrics", "pytorch_fid")


def pictures(size=(310, 401)):
    """A gray and a coloured picture, smooth with a little noise."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 20, (*size, 3))
    colour = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return [colour.transpose(Image.Transpose.FLIP_TOP_BOTTOM).convert("L"), colour]


def planes(image):
    """A picture as packages are given it: RGB bytes, (1, 3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous()


@pytest.fixture(scope="module")
def state_dict():
    """Random weights, with the pictures' own statistics in the batch norms, so that the features vary.

    Most units are active: where half of them are not, float32's rounding grows to 2e-5 in PyTorch's own features.
    """
    torch.manual_seed(0)
    network = reference.InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 1.0, 0.5)
    batch = torch.cat([functional.interpolate(planes(image).float(), (299, 299)) for image in pictures()])
    with torch.no_grad():
        network.train()(batch / 128 - 1)
    return network.state_dict()


@pytest.fixture(scope="module")
def file(state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(state_dict, path)
    return path


@pytest.fixture(scope="module")
def weights(file):
    return INCEPTION.read(file)


def prepared(name):
    return np.stack([INCEPTION.preprocessings[name](image) for image in pictures()])


@pytest.fixture(scope="module")
def features(weights):
    """A batch's features; compiled once."""
    network = abstract_network(INCEPTION)
    run = jax.jit(lambda weights, batch: with_parameters(network, weights)(batch))
    return lambda batch: np.asarray(run(weights, batch))


@torch.no_grad()
def test_features_are_those_of_torchvisions_layers_with_the_pools_of_fid(features, state_dict):
    network = reference.InceptionV3().eval()
    network.load_state_dict(state_dict)
    batch = prepared("clean-fid")
    assert INCEPTION.width == 2048
    near(features(batch), network(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy())


@pytest.fixture(scope="module")
def torchvision():
    """A stand-in for torchvision, whose wheels do not load beside a PyTorch for CPUs."""
    utils = pytest.importorskip("transformers.utils")
    utils.is_torchvision_available()  # transformers remembers this answer, which is from before the stand-in
    stub = mock.MagicMock(__version__="0.28", __spec__=importlib.machinery.ModuleSpec("torchvision", None), __path__=[])
    stub.models.inception, stub.models.inception_v3 = reference, reference.InceptionV3
    parts = ("datasets", "ops", "models", "models.inception", "transforms", "transforms.functional")
    stubs = {f"torchvision.{part}": getattr(stub, part.split(".")[-1]) for part in parts} | {"torchvision": stub}
    stubs["torchvision.models.inception"] = reference
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in PACKAGES}
    sys.modules.update(stubs)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.modules.update(before)


def torch_fidelity(file, _):
    package = pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    kind = package.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    return kind("inception", ["2048"], feature_extractor_weights_path=str(file)), planes


def torchmetrics(file, _):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    package = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    return package.NoTrainInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file)), planes


def pytorch_fid(_, state_dict):
    package = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    with mock.patch.object(package, "load_state_dict_from_url", return_value=state_dict):
        return package.InceptionV3([3]).eval(), lambda image: planes(image) / 255


LIBRARIES = {"torch-fidelity": torch_fidelity, "torchmetrics": torchmetrics, "pytorch-fid": pytorch_fid}


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", LIBRARIES)
@torch.no_grad()
def test_features_are_those_of_the_package(features, file, state_dict, name):
    network, given = LIBRARIES[name](file, state_dict)
    outputs = [network(given(image)) for image in pictures()]
    theirs = torch.cat([output if torch.is_tensor(output) else output[0] for output in outputs]).flatten(1).numpy()
    near(features(prepared(name)), theirs)


class Stopped(Exception):
    pass


def first_input(network, images):
    """What a network's first convolution gets, (H, W, 3)."""

    def stop(_, arguments):
        raise Stopped(arguments[0])

    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_pre_hook(stop)
    with pytest.raises(Stopped) as stopped:
        network(images)
    handle.remove()
    return stopped.value.args[0][0].permute(1, 2, 0).numpy()


def same(name, image, expected):
    own = INCEPTION.preprocessings[name](image)
    assert own.dtype == np.float32
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", LIBRARIES)
@torch.no_grad()
def test_radiographs_are_prepared_as_the_package_does(file, state_dict, name):
    network, given = LIBRARIES[name](file, state_dict)
    for image in radiographs():
        same(name, image, first_input(network, given(image)))


def test_radiographs_are_prepared_as_clean_fid_does():
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed").build_resizer("clean")
    for image in radiographs():
        same("clean-fid", image, (resize(np.array(image.convert("RGB"))) - 128) / 128)


def interpolated(image, **options):
    tensor = functional.interpolate(planes(image).float(), (299, 299), mode="bilinear", align_corners=False, **options)
    return tensor[0].permute(1, 2, 0).numpy()


def corners(image):
    """Each pixel between its four neighbours, at positions that start in the corner."""
    values = np.asarray(image.convert("RGB"), np.float64)
    for axis, length in enumerate(values.shape[:2]):
        position = np.arange(299) * length / 299
        first = position.astype(int)
        share = np.expand_dims(position - first, (1, 2) if axis == 0 else (0, 2))
        second = np.minimum(first + 1, length - 1)
        values = values.take(first, axis) * (1 - share) + values.take(second, axis) * share
    return values


def float_channels(image):
    channels = [np.asarray(c, np.float32) for c in image.convert("RGB").split()]
    resized = [Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC) for c in channels]
    return np.stack([np.asarray(c) for c in resized], -1).clip(0, 255)


DEFINITIONS = {
    "clean-fid": lambda image: (float_channels(image) - 128) / 128,
    "pytorch-fid": lambda image: interpolated(image) / 255 * 2 - 1,
    "torch-fidelity": lambda image: (corners(image) - 128) / 128,
    "torchmetrics": lambda image: (interpolated(image, antialias=True) - 128) / 128,
}


@pytest.mark.parametrize("size", [(310, 401), (299, 299), (700, 150)])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_pictures_are_prepared_as_each_library_says(name, size):
    for image in pictures(size):
        same(name, image, DEFINITIONS[name](image))


def test_the_first_preprocessing_is_clean_fids():
    assert list(INCEPTION.preprocessings) == list(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_gray_is_three_equal_channels(name):
    image = pictures()[0]
    prepare = INCEPTION.preprocessings[name]
    np.testing.assert_array_equal(prepare(image), prepare(image.convert("RGB")))


def refused(tensors, tmp_path, match):
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(UserError, match=match):
        INCEPTION.read(tmp_path / "other.pth")


def test_other_networks_are_refused(state_dict, tmp_path):
    refused(state_dict | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path, r"fc.weight has shape \(1000, 2048\)")
    refused(state_dict | {"AuxLogits.fc.bias": torch.zeros(8)}, tmp_path, "AuxLogits.fc.bias has shape")
    short = {name: tensor for name, tensor in state_dict.items() if not name.startswith("Mixed_7c.branch3x3_2b")}
    refused(short, tmp_path, "Mixed_7c.branch3x3_2b.* is missing")


def test_the_classifier_may_be_absent(weights, state_dict, tmp_path):
    torch.save(
        {name: tensor for name, tensor in state_dict.items() if not name.startswith("fc.")}, tmp_path / "own.pth"
    )
    own = INCEPTION.read(tmp_path / "own.pth")
    assert own.keys() == weights.keys()
    assert all(np.array_equal(own[name], weights[name]) for name in own)


def test_a_torchscript_file_is_refused_with_the_name_of_the_one_that_is_read(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match=r"05\.pt: is a TorchScript .*pt_inception-2015-12-05-6726825d\.pth"):
        INCEPTION.read(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="bad.pth"):
        INCEPTION.read(path)
    with pytest.raises(UserError, match="no such file"):
        INCEPTION.read(tmp_path / "absent.pth")
