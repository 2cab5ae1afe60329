import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.sample import Settings, sample
from tests import pipelines

PROMPTS = [{"prompt": text} for text in pipelines.REPORTS[:3]]
SETTINGS = Settings("base", steps=2, guidance=1.0, eta=1.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return interop.load(pipelines.write(tmp_path_factory.mktemp("pipeline") / "base"))


def pictures(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def test_a_picture_with_noise_on_the_way_does_not_depend_on_its_batch(pipeline, tmp_path):
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "two", batch_size=2)
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "three", batch_size=3)
    sample(pipeline, PROMPTS[:1] * 2, SETTINGS, tmp_path / "alike", batch_size=2)
    two, three = pictures(tmp_path / "two"), pictures(tmp_path / "three")
    # A level of gray for the rounding of another program.
    assert np.abs(np.subtract(two, three, dtype=int)).max() <= 1
    assert np.abs(np.subtract(*pictures(tmp_path / "alike"), dtype=int)).max() > 10


def test_pictures_are_numbered_whatever_the_prompts_say(pipeline, tmp_path):
    prompts = [{"prompt": "a", "file_name": "images/7.jpg", "index": 7}, {"prompt": "b", "file_name": "images/7.jpg"}]
    sample(pipeline, prompts, SETTINGS, tmp_path / "out", batch_size=2)
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["00000.png", "00001.png"]
    assert len(pictures(tmp_path / "out")) == 2


def test_samples_are_of_the_step_that_the_checkpoint_was_at(pipeline, tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_step=4)
    sample(pipeline, PROMPTS, settings, tmp_path / "out")
    assert settings.already_done(tmp_path / "out", PROMPTS)
    with pytest.raises(UserError, match="holds samples of step 4 of base, which is at 8; name another --out"):
        dataclasses.replace(settings, checkpoint_step=8).already_done(tmp_path / "out", PROMPTS)
    with pytest.raises(UserError, match="holds samples of other prompts or settings"):
        dataclasses.replace(settings, checkpoint_step=8, seed=1).already_done(tmp_path / "out", PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 15}, "pictures of 15 pixels: this autoencoder wants a multiple of 2"),
        ({"size": 0}, "pictures of 0 pixels"),
        ({"eta": 2.0}, "--eta 2.0: may be from 0 to 1"),
        ({"guidance": float("nan")}, "--guidance nan: may be 0 or more"),
        ({"seed": 2**32}, "--seed 4294967296: may be from 0"),
        ({"seed": -1}, "--seed -1: may be from 0"),
        ({"batch_size": 0}, "--batch-size 0: may be 1 or more"),
        ({"batch_size": -3}, "--batch-size -3: may be 1 or more"),
    ],
)
def test_options_that_cannot_be_are_told(pipeline, tmp_path, change, message):
    change = dict(change)
    batch_size = change.pop("batch_size", 2)
    with pytest.raises(UserError, match=message):
        sample(pipeline, PROMPTS, dataclasses.replace(SETTINGS, **change), tmp_path / "out", batch_size)
    assert not (tmp_path / "out").exists()
