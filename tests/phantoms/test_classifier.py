import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcxr.errors import UserError
from jaxcxr.phantoms import classifier as classifiers
from jaxcxr.phantoms import training
from jaxcxr.phantoms.classifier import NAMES, WEIGHTS, fit_input, read, see, to_bytes
from jaxcxr.phantoms.networks import ANSWERS, NETWORKS
from jaxcxr.phantoms.scores import score
from jaxcxr.phantoms.studies import phantom
from jaxcxr.phantoms.training import TEST_SEED, Batch, Settings
from jaxcxr.phantoms.truth import CLASSES, GRADES
from tests.phantoms.classifiers import untrained

TINY = Settings("placed", seed=5, steps=(4, 2), batch_size=4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_classifier_is_read_back_as_it_was_written(tmp_path, network):
    file = tmp_path / "mine.safetensors"
    one = untrained(network)
    file.write_bytes(to_bytes(one))
    again = read(file)
    assert again.about == one.about
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    np.testing.assert_array_equal(see(again, images).present, see(one, images).present)
    assert see(one, images).present.shape == (3, len(CLASSES))
    assert see(one, images).grades.shape == (3, len(GRADES))


def test_larger_pictures_are_reduced_and_smaller_ones_refused():
    one = untrained()
    assert [one.reads_at(side) for side in (64, 100, 128, 512)] == [64, 64, 128, 128]
    with pytest.raises(UserError, match="untrained: reads pictures of 64 or 128 pixels a side, these have 32; make"):
        see(one, np.zeros((1, 32, 32), np.uint8))
    with pytest.raises(UserError, match="reads pictures of 128 pixels a side, these have 64"):
        see(untrained(sizes=("128",)), np.zeros((1, 64, 64), np.uint8))
    picture = phantom(1, 1, 64).image
    np.testing.assert_array_equal(fit_input(picture[None], 64)[0, ::2, 1::2], picture)
    assert fit_input(np.zeros((2, 300, 300), np.uint8), 128).shape == (2, 128, 128)


def test_answers_do_not_depend_on_the_other_pictures():
    images = np.random.default_rng(0).integers(0, 256, (70, 128, 128), dtype=np.uint8)
    one = untrained()
    logits = classifiers.predict("pooled", one.parameters, images)
    assert logits.shape == (70, ANSWERS)
    np.testing.assert_allclose(classifiers.predict("pooled", one.parameters, images[66:]), logits[66:], atol=1e-4)


def test_files_that_are_no_classifier_are_one_line(tmp_path):
    with pytest.raises(UserError, match="third: no such classifier; give first or second, or a file"):
        read("third")
    file = tmp_path / "mine.safetensors"
    one = untrained()

    def refused(message):
        with pytest.raises(UserError, match=message) as error:
            read(file)
        assert "\n" not in str(error.value)

    file.write_bytes(b"something else")
    refused("not a classifier of phantoms")
    save_file({"a": np.zeros(3)}, file)
    refused("not a classifier of phantoms")
    file.write_bytes(to_bytes(dataclasses.replace(one, about=dataclasses.replace(one.about, network="other"))))
    refused("another version")
    file.write_bytes(to_bytes(dataclasses.replace(one, parameters={"out.bias": np.zeros(34, np.float16)})))
    refused("other tensors")
    nan = dict(one.parameters) | {"out.bias": np.full(34, np.nan, np.float16)}
    file.write_bytes(to_bytes(dataclasses.replace(one, parameters=nan)))
    refused("other tensors")
    short = dataclasses.replace(one.about, thresholds={"64": (0.0,)})
    file.write_bytes(to_bytes(dataclasses.replace(one, about=short)))
    refused("length")


def test_an_interrupted_training_resumes_with_the_same_weights(tmp_path, monkeypatch):
    def batches(settings, first, stop=6):
        yield from (training._draw_step(settings, step) for step in range(first, stop))
        if stop < 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    monkeypatch.setattr(training, "_batches", batches)
    whole = training.fit(TINY, tmp_path / "whole.state")
    monkeypatch.setattr(training, "_batches", lambda *args: batches(*args, stop=3))
    with pytest.raises(KeyboardInterrupt):
        training.fit(TINY, tmp_path / "half.state")
    monkeypatch.setattr(training, "_batches", batches)
    resumed = training.fit(TINY, tmp_path / "half.state")
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)


def test_degrading_keeps_sides_and_changes_little():
    import jax

    image = np.zeros((4, 128, 128), np.uint8)
    image[:, 80:120, 72:120] = 255  # the patient's left
    masks = image[:, ::4, ::4, None] > 0
    changed, moved = map(np.asarray, training.degrade(jax.numpy.asarray(image), masks, jax.random.key(0)))
    assert changed.shape == image.shape
    assert moved.shape == masks.shape
    bright = changed.reshape(4, 32, 4, 32, 4).mean((2, 4))
    assert (bright[moved[..., 0] > 0.99] > 0.6).all(), "the mask moves with the picture"
    assert 0 <= changed.min() < changed.max() <= 1
    assert (changed[:, :, 64:].mean((1, 2)) > changed[:, :, :64].mean((1, 2)) + 0.1).all()


def test_a_threshold_lies_between_what_it_tells_apart():
    logits, there = np.array([-3.0, -2.0, -1.0, 2.0, 3.0]), np.array([False, False, False, True, True])
    assert -1 < training._threshold(logits, there) < 2


@pytest.mark.parametrize("name", NAMES)
def test_the_classifiers_that_ship_see_what_is_there(name):
    one = read(name)
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 2 * 2**20
    for size, least in ((128, 0.95), (64, 0.9)):
        batch = Batch.draw(77, range(240), (size,))
        seen = see(one, batch.images if size == 128 else batch.images[:, ::2, ::2])
        scores = score(batch.present, seen.present).values()
        hits, total = sum(s.sensitivity.hits for s in scores), sum(s.sensitivity.total for s in scores)
        assert hits / total > least
        hits, total = sum(s.specificity.hits for s in scores), sum(s.specificity.total for s in scores)
        assert hits / total > least


@pytest.mark.parametrize("name", NAMES)
def test_the_classifiers_that_ship_carry_their_settings_and_the_table_that_the_bar_is_set_for(name):
    about = read(name).about
    assert about.training == dataclasses.asdict(training.CLASSIFIERS[name])
    assert about.training["seed"] != TEST_SEED
    assert set(about.tables) == {"128", "64", "128 degraded", "64 degraded"}
    for table in about.tables.values():
        assert all(one.sensitivity.total >= 500 and one.specificity.total >= 500 for one in table.classes.values())


def test_the_two_classifiers_have_nothing_in_common():
    first, second = training.CLASSIFIERS.values()
    assert first.network != second.network
    assert first.seed != second.seed
    assert set(NAMES) <= set(training.CLASSIFIERS)


def test_the_weights_are_in_the_wheel():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        file.name for pattern in patterns["jaxcxr.phantoms"] for file in (root / "jaxcxr" / "phantoms").glob(pattern)
    }
    assert packed == {f"{name}.safetensors" for name in NAMES}


def test_the_rate_rises_and_falls_in_every_round():
    rates = training._rates(dataclasses.replace(TINY, steps=(8, 12, 20)))
    assert [float(rates(step)) for step in (0, 8, 20, 40)] == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert [float(rates(step)) for step in (2, 11, 25)] == pytest.approx([TINY.learning_rate] * 3)
