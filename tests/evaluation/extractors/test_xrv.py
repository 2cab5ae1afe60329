import importlib
import importlib.util
import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import xrv
from jaxcxr.evaluation.extractors.xrv import OPERATING_POINTS, PATHOLOGIES, XRV
from tests.evaluation.extractors.test_torchvision_nets import densenet_by_hand, head_of, images, module_of, state_of
from tests.evaluation.extractors.towers import near, noise, radiographs, run, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional


@pytest.fixture(scope="module")
def torchxrayvision():
    if importlib.util.find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision is not installed")
    # What its data sets want; its networks need none of these.
    torchvision = ["torchvision", "torchvision.models", "torchvision.transforms"]
    beside = [*torchvision, "skimage", "skimage.io", "skimage.transform", "imageio", "pandas"]
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in beside}):
        yield importlib.import_module("torchxrayvision")


@pytest.fixture(scope="module")
def state():
    return state_of(xrv.classifier)


def inputs():
    return images(channels=1, scale=400)  # −1024 to 1024 or so


def test_features_and_outputs_are_what_torch_computes(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    expected = densenet_by_hand(state, to_torch(inputs()))
    found = run(XRV, XRV.read(tmp_path / "a.pt"), inputs())
    near(found, expected.numpy())
    ours = module_of(xrv.classifier, xrv.read_classifier(tmp_path / "a.pt"))
    logits = functional.linear(expected, state["classifier.weight"], state["classifier.bias"])
    assert logits.shape == (2, len(PATHOLOGIES))
    near(np.asarray(ours.logits(jnp.asarray(found))), logits.numpy())


@pytest.fixture(scope="module")
def published(torchxrayvision, state):
    """A module of torchxrayvision's with weights of ours."""
    theirs = torchxrayvision.models.DenseNet().eval()
    theirs.load_state_dict(state, strict=False)
    return theirs


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torchxrayvisions_whole_module_gives_its_features(tmp_path, published, zipped):
    torch.save(published, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    torch.save(published.state_dict(), tmp_path / "state.pt")
    weights, alone = XRV.read(tmp_path / "best.pt"), XRV.read(tmp_path / "state.pt")
    assert weights.keys() == alone.keys()
    assert all((weights[name] == alone[name]).all() for name in weights)
    assert not [name for name in weights if name.startswith("classifier")]
    head = xrv.read_classifier(tmp_path / "best.pt")
    assert head.keys() - weights.keys() == {"classifier.kernel", "classifier.bias"}
    np.testing.assert_array_equal(head["classifier.kernel"], published.classifier.weight.detach().numpy().T)
    if zipped:
        with torch.no_grad():
            near(run(XRV, weights, inputs()), published.features2(to_torch(inputs())).numpy())


def test_scores_are_torchxrayvisions(torchxrayvision, published, state):
    thresholds = torch.tensor(torchxrayvision.models.model_urls["all"]["op_threshs"])
    assert torchxrayvision.models.model_urls["all"]["labels"] == list(PATHOLOGIES)
    np.testing.assert_array_equal(np.array(OPERATING_POINTS, np.float32), thresholds.numpy())
    logits = np.random.default_rng(0).normal(-3, 2, (20, 18)).astype(np.float32)
    expected = torchxrayvision.models.op_norm(torch.sigmoid(torch.from_numpy(logits)), thresholds)
    np.testing.assert_allclose(xrv.scores(logits), expected.numpy(), atol=1e-6)
    published.op_threshs = thresholds
    with torch.no_grad():
        expected = published(to_torch(inputs())).numpy()
        hidden = published.features2(to_torch(inputs())).numpy()
    published.op_threshs = None
    kernel, bias = (head_of(state, "classifier")[f"classifier.{leaf}"] for leaf in ("kernel", "bias"))
    np.testing.assert_allclose(xrv.scores(hidden @ kernel + bias), expected, atol=1e-5)


def test_a_score_is_a_line_through_the_operating_point():
    points = np.array(OPERATING_POINTS)
    for share in (0.0, 0.25, 0.5, 1.0):
        below, above = points * share, points + (1 - points) * share
        odds = np.log(np.maximum(below, 1e-30)) - np.log1p(-below)
        np.testing.assert_allclose(xrv.scores(jnp.asarray(odds)), np.full(18, share / 2), atol=2e-6)
        odds = np.log(above) - np.log(np.maximum(1 - above, 1e-30))
        np.testing.assert_allclose(xrv.scores(jnp.asarray(odds)), np.full(18, 0.5 + share / 2), atol=2e-6)
    found = xrv.calibrated(jnp.array([[0.1, 0.1, 0.9]]), jnp.array([jnp.nan, 0.2, 0.2]))
    np.testing.assert_allclose(found, [[0.5, 0.25, 0.9375]], atol=1e-6)
    assert (PATHOLOGIES[7], OPERATING_POINTS[7]) == ("Effusion", 0.103246614)


def interpolated(array, antialias):
    tensor = to_torch(array[None])
    resized = functional.interpolate(tensor, (224, 224), mode="bilinear", align_corners=False, antialias=antialias)
    return resized[0, 0].numpy()


@pytest.mark.parametrize("size", [150, 224, 300, 1001])
@pytest.mark.parametrize("antialias", [True, False])
def test_a_square_picture_is_resized_as_torch_does(size, antialias):
    image = noise(size, size, "L")
    found = XRV.preprocessings["xrv" if antialias else "xrv-no-antialias"](image)
    scaled = np.asarray(image, np.float32)[:, :, None] / 255 * 2048 - 1024
    assert found.shape == (224, 224, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, 0], interpolated(scaled, antialias), atol=2e-3)


def test_a_square_picture_is_torchxrayvisions(torchxrayvision, published):
    image = noise(400, 400, "L")
    scaled = torchxrayvision.utils.normalize(np.asarray(image), 255)
    expected = torchxrayvision.utils.fix_resolution(torch.from_numpy(scaled)[None], 224, published)
    np.testing.assert_allclose(XRV.preprocessings["xrv"](image)[:, :, 0], expected[0, 0].numpy(), atol=2e-3)


def test_white_is_1024_and_colour_becomes_gray():
    for name, preprocess in XRV.preprocessings.items():
        darker = 2048e-4 if name.startswith("roentgen") else 0
        np.testing.assert_allclose(preprocess(Image.new("L", (300, 300), 255)), 1024 - darker, atol=0.01)
        np.testing.assert_allclose(preprocess(Image.new("L", (300, 300), 0)), -1024, atol=0.01)
        red = preprocess(Image.new("RGB", (300, 300), (255, 0, 0)))
        np.testing.assert_allclose(red, 0.299 * 2048 - 1024, atol=3)


@pytest.mark.parametrize("name", ["xrv", "xrv-no-antialias"])
def test_what_is_not_square_is_told(name):
    with pytest.raises(UserError, match=r"a picture of 300 x 299 pixels: .*crop or pad"):
        XRV.preprocessings[name](noise(300, 299))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_roentgens_path(antialias, mode):
    image = noise(500, 400, mode)
    channels = []
    for channel in image.convert("RGB").split():
        values = Image.fromarray(np.asarray(channel, np.float32))
        channels.append(np.asarray(values.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255))
    luma = 0.2989 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]
    expected = interpolated((2048 * (luma / 255) - 1024)[:, :, None].astype(np.float32), antialias)
    found = XRV.preprocessings["roentgen" if antialias else "roentgen-no-antialias"](image)
    assert found.shape == (224, 224, 1)
    np.testing.assert_allclose(found[:, :, 0], expected, atol=5e-3)


def test_real_radiographs(tmp_path, state):
    pictures = radiographs(2)
    torch.save(state, tmp_path / "a.pt")
    weights = XRV.read(tmp_path / "a.pt")
    batch = np.stack([XRV.preprocessings["roentgen"](picture) for picture in pictures])
    assert -1024.01 < batch.min() < -500 < 200 < batch.max() < 1024.01
    near(run(XRV, weights, batch), densenet_by_hand(state, to_torch(batch)).numpy())
