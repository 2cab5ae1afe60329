"""Prior preservation: class pictures drawn by the base, learnt beside one's own."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr.data.loader import as_text, open_split
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.errors import UserError
from jaxcxr.training.feed import open_batches, tokenizer_folder
from jaxcxr.training.prior import with_prior
from jaxcxr.training.train import train
from jaxcxr.workdir import read_config
from tests import pipelines
from tests.training import runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("prior") / "base")


def config_of(base, folder, **changes) -> ConfigDict:
    config = runs.diffusion(base)
    with config.unlocked():
        config.model.unet = config.model.text_encoder = config.model.scheduler = ConfigDict()
    config.model.measure_scaling_factor = False
    config.trainable = r"unet\..*"
    prior = {"prior.path": str(folder), "prior.prompt": "Frontal chest radiograph.", "prior.count": 6}
    config.update_from_flattened_dict({**prior, "steps": 2, "checkpoint_every": 2, **changes})
    return config


def test_class_pictures_are_drawn_once_and_learnt_with_any_weighting(base, tmp_path, capsys):
    config = config_of(base, tmp_path / "prior", **{"objective.min_snr_gamma": 5.0})
    train(config, tmp_path / "run")
    drawn = open_split(tmp_path / "prior", "train", runs.SIZE)
    assert [as_text(record["prompts"][0]) for record in drawn] == ["Frontal chest radiograph."] * 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "prior").rglob("*") if file.is_file()}
    config.steps = 3
    train(config, tmp_path / "run")
    assert "at step 3 of 3" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert read_config(tmp_path / "run")["data"]["mixture"] == [[str(tmp_path / "prior"), 1.0]]


def test_their_share_of_what_is_drawn_is_that_of_their_weight(base, tmp_path):
    config = with_prior(config_of(base, tmp_path / "prior", **{"prior.weight": 0.5}))
    batches = open_batches(config, "train", load_tokenizer(tokenizer_folder(config)))
    own = len(open_split(runs.data(), "train"))
    places = np.array([place for step in range(150) for place in batches.places(step)])
    assert batches.images == own + 6
    assert abs((places >= own).mean() - 1 / 3) < 0.06
    assert with_prior(config).data.mixture == config.data.mixture, "a resumed run has them in its config already"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior.prompt": ""}, r"holds no class pictures; prepare some, or set config\.prior\.prompt"),
        ({"model.base": ""}, r"config\.prior\.prompt='Frontal.*': wants config\.model\.base to draw with"),
        ({"data.cache": "somewhere"}, r"config\.prior\.path=.*: has no cache; leave config\.data\.cache empty"),
    ],
)
def test_what_it_lacks_is_told(base, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        with_prior(config_of(base, tmp_path / "prior", **changes))
