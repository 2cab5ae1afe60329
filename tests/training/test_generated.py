"""Metrics of what a run draws while it trains: the same each time, on record, and good to stop by."""

import json

import numpy as np
import pytest

from jaxcxr.data.images import decode_png
from jaxcxr.data.loader import open_split
from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors
from jaxcxr.evaluation.features import Network
from jaxcxr.evaluation.metrics import frechet
from jaxcxr.interop.orbax import best_step
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training import generated
from jaxcxr.training.train import train
from tests import pipelines
from tests.evaluation import small
from tests.training import jobs, runs

NAME = "fd/small/plain"
EVALUATION = {
    "evaluation.every": 3,
    "evaluation.generated": 6,
    "evaluation.extractors": ("small",),
    "evaluation.metrics": ("fd", "kid"),
}


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "small", small.EXTRACTOR)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("base") / "base")


def config(base, **changes):
    return runs.diffusion(base, **{"model.measure_scaling_factor": False, **EVALUATION, **changes})


def on_record(workdir, name=NAME):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[name] for row in rows if name in row}


def test_a_run_puts_them_on_record_and_learns_the_same(tmp_path, base, monkeypatch):
    drawn = []
    make = generated.make_pictures

    def watched(*args):
        pictures = make(*args)
        return lambda *given: drawn.append((given[1], pictures(*given))) or drawn[-1][1]

    monkeypatch.setattr(generated, "make_pictures", watched)
    train(config(base), tmp_path / "run")
    found = on_record(tmp_path / "run")
    assert list(found) == [0, 3, 6]
    records = open_split(runs.data(), "validate")
    order = np.random.default_rng(0).permutation(len(records))
    images = [decode_png(records[place]["image"])[..., 0] for place in order.tolist()]
    one = extractors.choose_all(["small"])[0]
    network = Network(one, 4, meshes.own_mesh())
    real = network.features(map(one.prepared, images))
    texts, last = drawn[-1]
    assert [text.encode() for text in texts[:6]] == [records[order[n % len(order)]]["prompts"][0] for n in range(6)]
    of_last = network.features(map(one.prepared, last[:6, ..., 0]))
    assert found[6] == pytest.approx(frechet.frechet(real, of_last), rel=1e-4)
    train(config(base, **{"evaluation.every": 0}), tmp_path / "without")
    jobs.assert_same(tmp_path / "run", tmp_path / "without")


def test_a_run_that_is_stopped_and_resumed_has_the_same_numbers(tmp_path, base):
    train(config(base), tmp_path / "whole")
    for stop_at in (2, 3, 5, 6):
        train(config(base), tmp_path / "run", stop_at=stop_at)
    assert on_record(tmp_path / "run") == on_record(tmp_path / "whole")
    jobs.assert_same(tmp_path / "run", tmp_path / "whole")


def test_it_may_be_changed_when_a_run_is_resumed(tmp_path, base):
    train(config(base, **{"evaluation.every": 0}), tmp_path / "run", stop_at=3)
    train(config(base), tmp_path / "run")
    assert 6 in on_record(tmp_path / "run")


def test_a_run_stops_by_them_and_keeps_the_best(tmp_path, base, monkeypatch):
    values = iter([9.0, 5.0, 3.0, 4.0, 6.0, 7.0])
    monkeypatch.setattr(generated.Generated, "__call__", lambda self, parameters: {NAME: next(values)})
    changes = {"evaluation.every": 1, "stopping.metric": NAME, "stopping.patience": 2, "checkpoint_every": 1}
    train(config(base, **changes), tmp_path / "run")
    assert best_step(tmp_path / "run") == 2
    assert list(on_record(tmp_path / "run")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.metrics": ("fid",)}, r"config\.evaluation\.metrics: 'fid' may be fd"),
        ({"evaluation.metrics": ("kid_of_subsets",)}, r"kid_of_subsets needs 1000 images of each set; there are"),
        ({"evaluation.extractors": ("inception",)}, "extractor inception: has no weights here"),
        (
            {"stopping.patience": 1, "stopping.metric": "fd/inception"},
            r"config\.stopping\.metric='fd/inception': evaluations give fd/small/plain, kid/small/plain",
        ),
        ({"evaluation.generated": 0}, r"config: Expected `int` >= 1, at `evaluation.generated`"),
    ],
)
def test_what_it_cannot_compute_is_told_before_the_first_step(tmp_path, base, changes, message):
    with pytest.raises(UserError, match=message):
        train(config(base, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    )


def test_an_autoencoder_draws_nothing(tmp_path):
    with pytest.raises(UserError, match=r"config\.evaluation\.every=3: config\.method='autoencoder' draws nothing"):
        train(runs.autoencoder(**{"evaluation.every": 3}), tmp_path / "run")
