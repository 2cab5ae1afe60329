import importlib
import importlib.util
import json
import sys
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.biovil_t import BIOVIL_T, text_features
from jaxcxr.evaluation.extractors.extractor import abstract_network
from jaxcxr.interop.layout import to_torch as as_torch
from jaxcxr.models.named import named_parameters
from tests.evaluation.extractors.towers import near, noise, pixels, radiographs, randomised, run, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional
FILE = "biovil_t_image_model_proj_size_128.pt"
PREVIOUS = "encoder.missing_previous_emb"
TEXTS = ["No acute process.", "Large left pleural effusion, moderate edema", "edema", "edema?!", ""]


def drawn(name, shape, draw):
    """A tensor that matters to the output: norms that differ by channel, kernels that keep the scale."""
    if name.endswith("running_var"):
        values = draw.uniform(0.5, 2, shape)
    elif len(shape) == 1 and name.endswith("weight"):
        values = draw.uniform(0.5, 1.0, shape)
    elif len(shape) > 1 and name.endswith("weight"):
        values = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = draw.standard_normal(shape) * 0.3
    return torch.tensor(values, dtype=torch.float32)


def state_dict():
    """Tensors by the names that the published file has, those that are not read among them."""
    draw, state = np.random.default_rng(0), {}
    for name, value in named_parameters(abstract_network(BIOVIL_T)).items():
        theirs, value = as_torch(name, np.broadcast_to(np.float32(0), value.shape))
        state[theirs] = drawn(theirs, value.shape, draw)
    state[PREVIOUS] = state.pop(f"{PREVIOUS}.bias").reshape(1, 256, 1, 1)
    state["encoder.encoder.bn1.num_batches_tracked"] = torch.tensor(3)
    state["encoder.encoder.fc.weight"] = torch.ones(1000, 2048)
    state["encoder.vit_pooler.pos_drop"] = torch.ones(2)
    return state


@torch.no_grad()
def reference(state, images):
    """The published network, layer by layer by the tensors' names."""

    def norm(name, x):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts)

    def conv(name, x, **options):
        return functional.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    trunk = "encoder.encoder"
    x = norm(f"{trunk}.bn1", conv(f"{trunk}.conv1", images, stride=2, padding=3)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for index in range(blocks):
            block, stride = f"{trunk}.layer{layer}.{index}", 2 if layer > 1 and index == 0 else 1
            y = norm(f"{block}.bn1", conv(f"{block}.conv1", x)).relu()
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y, stride=stride, padding=1)).relu()
            y = norm(f"{block}.bn3", conv(f"{block}.conv3", y))
            if index == 0:
                x = norm(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride=stride))
            x = (x + y).relu()
    now = conv("encoder.backbone_to_vit", x)
    patches = torch.cat([now, state[PREVIOUS].expand_as(now)], dim=1)
    hidden = norm("projector.model.1", conv("projector.model.0", patches)).relu()
    return functional.normalize(conv("projector.model.3", hidden).mean(dim=(2, 3)), dim=-1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("biovil_t")
    torch.save(state_dict(), folder / FILE)
    return folder


def test_features_are_those_of_the_published_layers(folder):
    images = pixels(128)
    found = run(BIOVIL_T, BIOVIL_T.read(folder), images)
    near(found, reference(state_dict(), to_torch(images)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_the_file_is_found_in_its_folder(folder, tmp_path):
    ours, theirs = BIOVIL_T.read(folder), BIOVIL_T.read(folder / FILE)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert ours["encoder.missing_previous_emb.bias"].shape == (256,)
    torch.save({"fc.weight": torch.ones(3, 3)}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"is of another network: has no encoder\.missing_previous_emb"):
        BIOVIL_T.read(tmp_path)
    torch.save({PREVIOUS: torch.ones(1, 256, 1, 1)}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"is missing"):
        BIOVIL_T.read(tmp_path)


def in_bytes(pixels):
    """Each image's own range to 0..255, rounded down."""
    pixels = pixels.astype(float) - pixels.min()
    return (pixels / pixels.max() * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(512, 512, "L"), (600, 700, "L"), (701, 600, "RGB"), (300, 450, "L")]
)
def test_preprocessing_is_that_of_its_definition(width, height, mode):
    image = noise(width, height, mode).point(lambda value: 40 + value // 2)
    found = BIOVIL_T.preprocessings["hi-ml"](image)
    assert found.shape == (448, 448, 3)
    assert found.dtype == np.float32
    gray = Image.fromarray(in_bytes(np.asarray(image))).convert("L")
    side = min(width, height)
    scaled = gray.resize((512 * width // side, 512 * height // side), Image.Resampling.BILINEAR)
    left, top = (round((length - 448) / 2) for length in scaled.size)
    wanted = np.asarray(scaled.crop((left, top, left + 448, top + 448)), np.float32) / 255
    np.testing.assert_array_equal(found, np.repeat(wanted[..., None], 3, axis=-1))


def test_neither_light_nor_contrast_is_seen():
    image = noise(520, 520, "L")
    dark = image.point(lambda value: value // 2)
    whole = [BIOVIL_T.preprocessings["hi-ml"](one) for one in (image, dark)]
    assert abs(whole[0] - whole[1]).max() < 0.02
    assert not BIOVIL_T.preprocessings["hi-ml"](Image.new("L", (512, 512), 77)).any()


@pytest.fixture(scope="module")
def package():
    """hi-ml-multimodal's modules; what they read files with is not needed."""
    for name in ("health_multimodal", "timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    # The wheel of torchvision registers operators of a PyTorch with CUDA.
    stubs = {"torchvision._meta_registrations": types.ModuleType("torchvision._meta_registrations")}
    stubs |= {name: mock.MagicMock(__spec__=None) for name in ("SimpleITK", "pydicom", "skimage")}
    with mock.patch.dict(sys.modules, stubs):
        yield importlib.import_module("health_multimodal.image.model.model")


def test_features_are_the_packages(package, tmp_path):
    theirs = package.ImageModel("resnet50_multi_image", joint_feature_size=128).eval()
    draw = np.random.default_rng(1)
    state = {
        name: value if name.endswith("num_batches_tracked") else drawn(name, tuple(value.shape), draw)
        for name, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    torch.save(state, tmp_path / FILE)
    images = pixels(160) * np.float32([[[[1]]], [[[3]]]])
    with torch.no_grad():
        wanted = functional.normalize(theirs(to_torch(images)).projected_global_embedding, dim=-1).numpy()
    found = run(BIOVIL_T, BIOVIL_T.read(tmp_path), images)
    near(found, wanted)


def test_preprocessing_is_the_packages(package):
    loading = importlib.import_module("health_multimodal.image.data.io")
    create = importlib.import_module(
        "health_multimodal.image.data.transforms"
    ).create_chest_xray_transform_for_inference
    for image in [*radiographs(4), noise(701, 600), noise(530, 530, "L")]:
        theirs = Image.fromarray(loading.remap_to_uint8(np.asarray(image))).convert("L")
        wanted = create(512, 448)(theirs).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(BIOVIL_T.preprocessings["hi-ml"](image), wanted, atol=1e-6)


def text_config():
    return {
        "vocab_size": 40,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 24,
        "projection_size": 128,
    }


def write_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"., abcdefghijklmnopqrstuvwxyz".replace(" ", "")]
    words += ["edema", "effusion", "pleural", "left", "large", "no"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 24}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def text_reference(model, head, ids):
    """CXR-BERT's projected first state from transformers' BertModel and the head's tensors."""
    with torch.no_grad():
        ids = torch.tensor(ids, dtype=torch.int64)
        x = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
        x = functional.gelu(functional.linear(x, head["dense_to_hidden.weight"], head["dense_to_hidden.bias"]))
        x = functional.layer_norm(x, (128,), head["LayerNorm.weight"], head["LayerNorm.bias"], 1e-12)
        x = functional.linear(x, head["dense_to_output.weight"], head["dense_to_output.bias"])
        return functional.normalize(x, dim=1).numpy()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of a small CXR-BERT, with its network's parts."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder, draw = tmp_path_factory.mktemp("cxr_bert"), np.random.default_rng(4)
    model = randomised(transformers.BertModel(transformers.BertConfig(**text_config()), add_pooling_layer=False))
    for name, parameter in model.named_parameters():  # so that the first state is of the words more than of itself
        if "LayerNorm.weight" in name:
            parameter.data = drawn(name, tuple(parameter.shape), draw)
        elif name.endswith("bias"):
            parameter.data /= 10
        elif "attention" in name:
            parameter.data *= 3
    shapes = {"dense_to_hidden": (128, 48), "LayerNorm": (128,), "dense_to_output": (128, 128)}
    head = {f"{name}.weight": drawn(f"{name}.weight", shape, draw) for name, shape in shapes.items()}
    head |= {f"{name}.bias": drawn(f"{name}.bias", (128,), draw) for name in shapes}
    state = {f"bert.{name}": value for name, value in model.state_dict().items()}
    state |= {f"cls_projection_head.{name}": value for name, value in head.items()}
    state |= {"cls.predictions.bias": torch.ones(40), "bert.embeddings.position_ids": torch.arange(24)[None]}
    torch.save(state, folder / "pytorch_model.bin")
    about = text_config() | {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "auto_map": {}}
    (folder / "config.json").write_text(json.dumps(about))
    write_tokenizer(folder)
    return folder, model, head, state


def test_texts_are_projected_first_states(text):
    folder, model, head, _ = text
    stripped = [each.rstrip("!?.") for each in TEXTS]
    found = text_features(folder, TEXTS)
    near(found, text_reference(model, head, tokens.encode(tokens.load(folder), stripped, 24)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[2], found[3])
    many = [f"{each} {'abc'[place % 3]}" for place in range(30) for each in TEXTS[:3]]
    near(text_features(folder, many)[:9], text_features(folder, many[:9]))
    assert text_features(folder, []).shape == (0, 128)


def test_texts_are_the_packages(package, text):
    folder, _, _, state = text
    modelling = importlib.import_module("health_multimodal.text.model.modelling_cxrbert")
    configuration = importlib.import_module("health_multimodal.text.model.configuration_cxrbert")
    theirs = modelling.CXRBertModel(configuration.CXRBertConfig(**text_config())).eval()
    left = theirs.load_state_dict(state, strict=False)
    assert all(name.startswith("cls.") for name in left.missing_keys)
    ids = torch.tensor(
        tokens.encode(tokens.load(folder), ["large left effusion", "no edema, a"], 24), dtype=torch.int64
    )
    with torch.no_grad():
        wanted = theirs.get_projected_text_embeddings(ids, (ids != 0).long()).numpy()
    near(text_features(folder, ["large left effusion", "no edema, a"]), wanted)


def test_a_folder_of_another_text_encoder_is_refused(text, tmp_path):
    about = text_config() | {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"is of 'bert' with 128 outputs; give microsoft/BiomedVLP-BioViL-T"):
        text_features(tmp_path, ["edema"])
    (tmp_path / "config.json").write_text(json.dumps(about | {"model_type": "cxr-bert", "projection_size": 64}))
    with pytest.raises(UserError, match="with 64 outputs"):
        text_features(tmp_path, ["edema"])
    (tmp_path / "config.json").write_text((text[0] / "config.json").read_text())
    with pytest.raises(UserError, match="has neither"):
        text_features(tmp_path, ["edema"])
