"""Classifiers: what they take an image as, their names, and the weights that they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import network_config
from jaxcxr.interop.layout import to_torch
from jaxcxr.interop.pipeline import from_files, initialize
from jaxcxr.models.classifier import ARCHITECTURES, batch_norms, prepared
from jaxcxr.models.config import ClassifierConfig
from jaxcxr.parallel.rules import STRATEGIES, unnamed
from jaxcxr.training.model import make_model
from tests.training.classifiers import config_of


def described(architecture, **changes):
    config = {"architecture": architecture, "classes": ("A", "B", "C"), "image_size": 32, **changes}
    return from_files({"classifier/config.json": network_config("classifier", config)})


def test_images_are_scaled_as_the_network_has_learnt():
    images = np.array([0, 128, 255, 51], np.uint8).reshape(1, 2, 2, 1)
    own = prepared(images, ClassifierConfig(classes=("A",), image_size=2))
    np.testing.assert_allclose(own[0, ..., 0], [[-1, 1 / 255], [1, -0.6]], atol=1e-6)
    three = prepared(images, ClassifierConfig(classes=("A",), image_size=2, in_channels=3))
    np.testing.assert_allclose(
        three[0, 1, 1], [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225], 1e-6
    )
    np.testing.assert_allclose(
        prepared(images, ClassifierConfig(classes=("A",), image_size=1)), [[[[-0.149]]]], atol=1e-3
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_a_rule_and_torchs_kind_of_name(architecture):
    parameters = described(architecture).parameters()
    assert not any(unnamed(parameters, strategy) for strategy in STRATEGIES)
    for name, value in parameters.items():
        to_torch(name, np.broadcast_to(np.float32(0), value.shape))
    assert bool(batch_norms(described(architecture).classifier)) == (architecture != "small")


def test_in_bfloat16_the_answers_are_nearly_those_of_float32():
    pipeline = described("small", image_size=64)
    parameters = initialize(pipeline, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)
    whole = pipeline.with_parameters(parameters).classifier.classify(images)
    half = from_files(pipeline.files, jnp.bfloat16).with_parameters(parameters).classifier
    assert half.stage1.conv1(jnp.zeros((1, 4, 4, 32))).dtype == jnp.bfloat16
    found = half.classify(images)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, whole, atol=0.05)
    assert np.abs(found - whole).max() > 0
    assert np.ptp(whole, axis=0).min() > 0.02


def test_a_file_of_imagenets_weights_gives_all_but_the_head(tmp_path):
    other = described("resnet18", in_channels=3, classes=tuple(map(str, range(1000))))
    theirs = initialize(other, jax.random.key(5))
    tensors = dict(to_torch(name.removeprefix("classifier."), np.asarray(value)) for name, value in theirs.items())
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous | {"bn1.num_batches_tracked": np.array(7)}, tmp_path / "imagenet.safetensors")
    changes = {"model.classifier.classes": ("Edema", "Cardiomegaly")}
    changes["model.classifier.pretrained"] = str(tmp_path / "imagenet.safetensors")
    pipeline, parameters = make_model(config_of("resnet18", **changes), jax.random.key(0))
    assert pipeline.classifier.config.in_channels == 3
    assert b"imagenet" not in pipeline.files["classifier/config.json"]
    assert {name: value.shape for name, value in parameters.items() if ".fc." in name} == {
        "classifier.fc.kernel": (512, 2),
        "classifier.fc.bias": (2,),
    }
    for name, value in parameters.items():
        if ".fc." not in name:
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    with pytest.raises(UserError, match="is of another network"):
        make_model(config_of("resnet50", **changes), jax.random.key(0))
