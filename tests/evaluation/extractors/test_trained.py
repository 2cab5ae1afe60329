"""A classifier that was trained here as an extractor."""

import numpy as np
import pytest
from PIL import Image

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors
from jaxcxr.evaluation.features import extract
from jaxcxr.evaluation.sets import open_set
from jaxcxr.interop.pipeline import from_files
from jaxcxr.models.classifier import prepared
from jaxcxr.training.train import train
from tests.evaluation import small
from tests.training.classifiers import config_of


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(config_of("small", **{"steps": 1, "checkpoint_every": 1}), folder)
    return folder


def test_features_are_what_it_sees_before_its_last_layer(tmp_path, workdir):
    (chosen,) = extractors.choose_all([str(workdir)])
    folder = small.write_images(tmp_path / "images", 3, seed=1, side=32)
    found = extract(open_set(folder), chosen, 32, tmp_path / "kept")
    checkpoint = interop.read(workdir, only=("classifier",))
    values = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    network = from_files(checkpoint.files, only=("classifier",)).with_parameters(values).classifier
    pixels = np.stack([np.asarray(Image.open(folder / f"{number:03}.png")) for number in range(3)])
    wanted = np.asarray(network(prepared(pixels[..., None], network.config)))
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert chosen.name == "run"
    assert np.ptp(wanted, axis=0).max() > 0


def test_a_folder_that_holds_no_classifier(tmp_path):
    with pytest.raises(UserError):
        extractors.choose_all([str(tmp_path)])
