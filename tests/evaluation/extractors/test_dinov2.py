import functools
import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.dinov2 import DINOV2_B, DINOV2_L, RAD_DINO
from jaxcxr.models.features.dinov2 import bicubic
from tests.evaluation.extractors.towers import near, noise, pixels, radiographs, randomised, run, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
BitImageProcessor = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def theirs():
    return randomised(transformers.Dinov2Model(transformers.Dinov2Config(image_size=518)))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    theirs.save_pretrained(folder := tmp_path_factory.mktemp("dinov2"))
    return folder


@pytest.fixture(scope="module")
def weights(folder):
    return RAD_DINO.read(folder)


def features(model, images):
    with torch.no_grad():
        return model(to_torch(images)).pooler_output.numpy()


def test_positions_are_resampled_as_transformers_does(theirs, weights):
    images = pixels(224)
    near(run(RAD_DINO, weights, images), features(theirs, images))


@pytest.mark.slow
def test_the_network_at_its_own_size_is_that_of_transformers(theirs, weights):
    images = pixels(518)
    near(run(RAD_DINO, weights, images), features(theirs, images))


@pytest.mark.full_size
def test_the_large_network_is_that_of_transformers(tmp_path):
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
    theirs = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))
    theirs.save_pretrained(tmp_path)
    images = pixels(224)
    _space_as_meta(theirs)
    near(run(DINOV2_L, DINOV2_L.read(tmp_path), images), features(theirs, images))


def _space_as_meta(model):
    """Gives the network of transformers the positions of Meta's code, whose ratio of sizes has 0.1 more."""
    positions = model.embeddings.position_embeddings.detach()
    grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    assert moved.shape[2:] == (16, 16)
    moved = torch.cat([positions[:, :1], moved.permute(0, 2, 3, 1).reshape(1, 256, -1)], dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *_: moved


def test_positions_of_dinov2_are_resampled_as_meta_does(theirs, weights, monkeypatch):
    images = pixels(224)
    plain = features(theirs, images)
    monkeypatch.setattr(theirs.embeddings, "interpolate_pos_encoding", None)
    _space_as_meta(theirs)
    expected = features(theirs, images)
    assert abs(expected - plain).max() > 1e-3 * abs(plain).max()
    near(run(DINOV2_B, weights, images), expected)


@pytest.mark.parametrize(("length", "new_length"), [(37, 16), (16, 37), (37, 37), (5, 24)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_matrix_resamples_as_pytorch_does(length, new_length, offset):
    line = np.random.default_rng(3).normal(size=length).astype(np.float32)
    how = {"scale_factor": ((new_length + offset) / length, 1.0)} if offset else {"size": (new_length, 1)}
    column = torch.tensor(line)[None, None, :, None]
    expected = torch.nn.functional.interpolate(column, mode="bicubic", **how)[0, 0, :, 0].numpy()
    np.testing.assert_allclose(bicubic(length, new_length, offset) @ line, expected, atol=3e-5)


def test_the_names_of_meta_are_read_too(folder, weights, tmp_path):
    old = _old_names(folder)
    names = [
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.", ""),
        ("encoder.layer.", "blocks."),
        ("layernorm", "norm"),
        ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ]
    rename = functools.partial(functools.reduce, lambda name, pair: name.replace(*pair), names)
    state = {rename(name): value for name, value in old.items() if ".attention.attention." not in name}
    for index in range(12):
        for leaf in ("weight", "bias"):
            parts = (f"encoder.layer.{index}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value"))
            state[f"blocks.{index}.attn.qkv.{leaf}"] = torch.cat([old[part] for part in parts])
    torch.save(state, tmp_path / "dinov2_vitb14_pretrain.pth")
    read = DINOV2_B.read(tmp_path / "dinov2_vitb14_pretrain.pth")
    assert read.keys() == weights.keys()
    assert all(np.array_equal(read[name], weights[name]) for name in weights)


def _old_names(folder):
    """The tensors of the file under the names that the published files have."""
    from safetensors.torch import load_file

    new = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    state = load_file(folder / "model.safetensors")
    for plain, old in new.items():
        state = {name.replace(f".attention.{plain}.", f".attention.{old}."): value for name, value in state.items()}
    assert "encoder.layer.11.attention.attention.query.weight" in state
    return state


def test_the_names_that_transformers_has_in_memory_are_read(theirs, weights, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "weights.bin")
    read = RAD_DINO.read(tmp_path / "weights.bin")
    assert all(np.array_equal(read[name], weights[name]) for name in weights)


def test_a_folder_of_another_network_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")

    def refusal(extractor, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError) as caught:
            extractor.read(tmp_path)
        return str(caught.value)

    assert "hidden_size is 768, this extractor has 1024; give facebook/dinov2-large" in refusal(DINOV2_L)
    assert "num_attention_heads is 6" in refusal(RAD_DINO, num_attention_heads=6)
    assert "layer_norm_eps is 1e-05" in refusal(RAD_DINO, layer_norm_eps=1e-5)
    assert "model_type is 'vit'" in refusal(RAD_DINO, model_type="vit")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"another network: .* has shape"):
        DINOV2_L.read(tmp_path)


@pytest.mark.parametrize("name", ["rad-dino", "rad-dino-299"])
def test_radiographs_become_what_rad_dinos_processor_makes(name):
    processor = BitImageProcessor(
        size={"shortest_edge": 518},
        crop_size={"height": 518, "width": 518},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
    )
    for image in [*radiographs(), noise(700, 521), noise(521, 700, "L"), noise(518, 518)]:
        whole = image.convert("RGB")
        if name == "rad-dino-299":  # CheXGenBench's torchvision `Resize` is Pillow's bilinear
            whole = whole.resize((299, 299), Image.Resampling.BILINEAR)
        expected = np.asarray(processor(whole, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        found = RAD_DINO.preprocessings[name](image)
        assert found.dtype == np.float32
        assert abs(found - expected).max() <= 1e-5
        assert found.std() > 0.1


@pytest.mark.parametrize("extractor", [DINOV2_B, DINOV2_L])
def test_pictures_are_squashed_as_dgm_eval_does(extractor):
    mean, std = IMAGENET
    for image in [noise(300, 500), noise(500, 300, "L")]:
        squashed = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        found = extractor.preprocessings["dgm-eval"](image)
        np.testing.assert_allclose(found, (squashed / 255 - mean) / std, atol=1e-5)
        bytes_ = np.rint((found * std + mean) * 255)
        np.testing.assert_array_equal(bytes_, squashed)
        bands = [np.array(band, np.float32) for band in image.convert("RGB").split()]
        floats = [Image.fromarray(band).resize((224, 224), Image.Resampling.BICUBIC) for band in bands]
        clean = np.stack([np.asarray(band).clip(0, 255) for band in floats], axis=-1)
        found = extractor.preprocessings["dgm-eval-clean"](image)
        np.testing.assert_allclose(found, (clean / 255 - mean) / std, atol=1e-5)
        assert abs(clean - squashed).max() > 0.1
