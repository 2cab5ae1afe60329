import functools
import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors.clip import CLIP_B_32, CLIP_L_14, CLIP_L_14_336, MEAN, STD, text_features
from jaxcxr.evaluation.extractors.extractor import read_weights
from jaxcxr.models.features.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from jaxcxr.models.named import with_parameters
from tests.evaluation.extractors.towers import near, noise, pixels, radiographs, randomised, run, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CLIPImageProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXTS = ["No acute process.", "Large left pleural effusion, moderate pulmonary edema.", "", "edema " * 100]


def both_towers(vision, text, width):
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    return randomised(transformers.CLIPModel(config))


def image_features(model, images):
    with torch.no_grad():
        return model.visual_projection(model.vision_model(pixel_values=to_torch(images)).pooler_output).numpy()


@pytest.fixture(scope="module")
def base():
    return both_towers({}, SMALL | {"vocab_size": 600}, 512)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    base.save_pretrained(folder := tmp_path_factory.mktemp("clip"))
    return folder


def test_images_of_a_folder_with_both_towers(base, folder):
    images = pixels(224)
    near(run(CLIP_B_32, CLIP_B_32.read(folder), images), image_features(base, images))


def test_images_of_a_folder_with_one_tower(base, folder, tmp_path):
    alone = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    alone.save_pretrained(tmp_path)
    whole, part = CLIP_B_32.read(folder), CLIP_B_32.read(tmp_path)
    assert whole.keys() == part.keys()
    assert all(np.array_equal(whole[name], part[name]) for name in whole)


@pytest.mark.full_size
@pytest.mark.parametrize(("extractor", "size"), [(CLIP_L_14, 224), (CLIP_L_14_336, 336)], ids=["224", "336"])
def test_images_of_the_large_networks(extractor, size, tmp_path):
    theirs = both_towers(LARGE | {"patch_size": 14, "image_size": size}, SMALL, 768)
    theirs.save_pretrained(tmp_path)
    images = pixels(size)
    expected = image_features(theirs, images)
    if size == 336:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    near(run(extractor, extractor.read(tmp_path), images), expected)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_network_with_vectors_of_length_one(act, tmp_path):
    sizes = SMALL | {"patch_size": 14, "image_size": 42, "hidden_act": act}
    theirs = both_towers(sizes, SMALL, 24)
    theirs.save_pretrained(tmp_path)
    network = functools.partial(_normalized, CLIPVisionConfig(**sizes, projection_dim=24))
    others = ("text_", "logit_scale")
    weights = read_weights(tmp_path, network, lambda name: None if name.startswith(others) else name)
    images = pixels(42)
    found = np.asarray(with_parameters(network(_rngs()), weights)(images))
    expected = image_features(theirs, images)
    near(found, expected / np.linalg.norm(expected, axis=1, keepdims=True))


def _normalized(config, rngs):
    return CLIPVisionModelWithProjection(config, normalized=True, rngs=rngs)


def _rngs():
    from flax import nnx

    return nnx.Rngs(0)


def test_the_networks_of_cmmd_and_of_clip_differ_in_the_norm_alone():
    networks = [extractor.network.args for extractor in (CLIP_B_32, CLIP_L_14, CLIP_L_14_336)]
    assert [normalized for _, normalized in networks] == [False, False, True]
    assert [config.image_size for config, _ in networks] == [224, 224, 336]
    assert [extractor.width for extractor in (CLIP_B_32, CLIP_L_14, CLIP_L_14_336)] == [512, 768, 768]


def test_a_folder_of_another_network_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")

    def refusal(extractor, **changes):
        vision = {key: value for key, value in changes.items() if key not in ("model_type", "projection_dim")}
        top = {key: value for key, value in changes.items() if key not in vision}
        (tmp_path / "config.json").write_text(
            json.dumps(config | top | {"vision_config": config["vision_config"] | vision})
        )
        with pytest.raises(UserError) as caught:
            extractor.read(tmp_path)
        return str(caught.value)

    wrong = "vision_config.hidden_size is 768, this extractor has 1024; give openai/clip-vit-large-patch14"
    assert wrong in refusal(CLIP_L_14)
    assert "vision_config.hidden_act is 'gelu'" in refusal(CLIP_B_32, hidden_act="gelu")
    assert "vision_config.num_attention_heads is 8" in refusal(CLIP_B_32, num_attention_heads=8)
    assert "vision_config.projection_dim is 768" in refusal(CLIP_B_32, projection_dim=768)
    assert "model_type is 'siglip'" in refusal(CLIP_B_32, model_type="siglip")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"another network: .* has shape"):
        CLIP_L_14.read(tmp_path)


def with_texts(folder, old_config=False):
    """Writes a small network of both towers and a tokenizer to `folder`; returns what transformers makes of TEXTS."""
    size = tokens.train(["pleural effusion", "edema", "no acute process"] * 9, 600, folder)
    text = SMALL | {"vocab_size": size, "eos_token_id": size - 1, "bos_token_id": size - 2, "pad_token_id": size - 1}
    theirs = both_towers(SMALL | {"patch_size": 14, "image_size": 42}, text, 24)
    theirs.save_pretrained(folder)
    if old_config:
        config = json.loads((folder / "config.json").read_text())
        generation = {"num_beams": 1, "top_p": 1.0, "cross_attention_hidden_size": None, "pruned_heads": {}}
        config["text_config_dict"] = {key: config["text_config"].pop(key) for key in SMALL}
        config["text_config"] |= generation | {"eos_token_id": 2}
        (folder / "config.json").write_text(json.dumps(config))
    ids = tokens.encode(tokens.load(folder), TEXTS, 77)
    with torch.no_grad():
        states = theirs.text_model(input_ids=torch.tensor(ids, dtype=torch.int64)).pooler_output
        return theirs.text_projection(states).numpy()


@pytest.mark.parametrize("old_config", [False, True])
def test_texts(old_config, tmp_path):
    expected = with_texts(tmp_path, old_config)
    found = text_features(tmp_path, TEXTS)
    assert found.dtype == np.float32
    near(found, expected)


def test_many_texts_are_taken_in_batches(tmp_path):
    with_texts(tmp_path)
    many = [f"{text} {index}" for index in range(20) for text in TEXTS[:3]] + TEXTS * 3
    found = text_features(tmp_path, many)
    near(found[60:64], text_features(tmp_path, TEXTS))
    near(found[68:], found[60:64])
    assert len({tuple(row) for row in found[:60]}) == 60
    assert text_features(tmp_path, []).shape == (0, 24)


def test_a_folder_without_texts_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        text_features(folder, ["edema"])
    with pytest.raises(UserError, match=r"config\.json"):
        text_features(tmp_path, ["edema"])
    with_texts(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": [1]}))
    with pytest.raises(UserError, match="text_config is not an object"):
        text_features(tmp_path, ["edema"])


@pytest.mark.parametrize("extractor", [CLIP_B_32, CLIP_L_14])
def test_pictures_become_what_clips_processor_makes(extractor):
    processor, compared = CLIPImageProcessor(), 0
    for image in [*radiographs(6), noise(224, 224), noise(300, 400, "L"), noise(401, 300)]:
        side = min(image.size)
        rest = max(224 * length // side for length in image.size) - 224
        if rest % 4 == 3:
            continue  # transformers rounds the half pixel down, torchvision, as CLIP has it, to the even neighbour
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        found = extractor.preprocessings["clip"](image)
        assert found.dtype == np.float32
        assert abs(found - expected).max() <= 1e-5
        compared += 1
    assert compared > 3


def test_half_a_pixel_of_a_crop_goes_to_the_even_neighbour():
    image = noise(227, 224)  # 3 columns too many: 1.5 of them on the left
    found = CLIP_B_32.preprocessings["clip"](image) * STD + MEAN
    np.testing.assert_array_equal(np.rint(found * 255), np.asarray(image)[:, 2:226])


def test_cmmd_cuts_the_square_first():
    for image in [noise(301, 400), noise(400, 301, "L")]:
        left, top = (image.width - 301) // 2, (image.height - 301) // 2
        square = image.convert("RGB").crop((left, top, left + 301, top + 301))
        expected = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC))
        found = CLIP_L_14_336.preprocessings["cmmd"](image)
        np.testing.assert_array_equal(np.rint((found * STD + MEAN) * 255), expected)
        np.testing.assert_allclose(found, (expected / 255 - MEAN) / STD, atol=1e-5)
