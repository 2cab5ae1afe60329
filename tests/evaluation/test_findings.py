import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation import findings, pictures
from jaxcxr.evaluation.findings import Settings, Table, wilson
from jaxcxr.phantoms.prompts import EFFUSIONS
from jaxcxr.phantoms.tree import write_tree

TINY = Settings(seed=5, patients=160, held_out=60, steps=60)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    file = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    return file, findings.cached_classifier(file, TINY)


def write_samples(folder, rows):
    """A folder as `jaxcxr sample` leaves it, of gray images."""
    folder.mkdir()
    for index, row in enumerate(rows):
        row.setdefault("file_name", f"{index:05d}.png")
        Image.fromarray(np.full((64, 64), 20 * index, np.uint8)).save(folder / f"{index:05d}.png")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_table_counts_asked_by_rows_and_shown_by_columns():
    table = Table.of(["none", "left", "left", "both"], ["none", "left", "right", "right"])
    assert table.counts == ((1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 0), (0, 0, 1, 0))
    assert (table.correct, table.total, table.accuracy) == (2, 4, 0.5)
    with pytest.raises(ValueError):
        Table.of(["none"], ["none", "left"])
    with pytest.raises(ValueError):
        Table.of(["none"], ["bilateral"])


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Values of Newcombe, Statist. Med. 17:857 (1998), table I, score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_of_nothing_and_of_everything():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 50)
    assert high == pytest.approx(1.0)
    assert 0.9 < low < 0.95


def test_classifier_learns_and_is_read_back(cached, monkeypatch):
    file, classifier = cached
    assert classifier.held_out.total == TINY.held_out
    assert classifier.held_out.interval[0] > 0.35  # chance is 0.25
    monkeypatch.setattr(findings, "train_classifier", lambda *_: pytest.fail("trained again"))
    again = findings.cached_classifier(file, TINY)
    images = np.random.default_rng(0).integers(0, 256, (9, 128, 128), dtype=np.uint8)
    assert findings.classify(again, images) == findings.classify(classifier, images)
    assert (again.held_out, again.held_out_degraded) == (classifier.held_out, classifier.held_out_degraded)


def test_classifier_of_other_settings_is_trained_anew(cached, monkeypatch):
    file, classifier = cached
    other = dataclasses.replace(TINY, seed=6)
    monkeypatch.setattr(
        findings, "train_classifier", lambda settings, _: dataclasses.replace(classifier, settings=settings)
    )
    copy = file.with_name("copy.safetensors")
    copy.write_bytes(file.read_bytes())
    assert findings.cached_classifier(copy, other).settings == other
    assert findings.read_classifier(copy).settings == other


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="not an effusion classifier"):
        findings.cached_classifier(file, TINY)
    assert file.read_bytes() == b"something else"


def test_degrading_keeps_sides_and_changes_little():
    image = np.zeros((4, 64, 64), np.uint8)
    image[:, 40:60, 36:60] = 255  # the patient's left
    changed = findings._degrade(image, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert changed.dtype == np.float32
    assert (changed[:, :, 32:].mean((1, 2)) > changed[:, :, :32].mean((1, 2)) + 0.1).all()


def test_phantom_truth_is_read_from_the_tree(tmp_path):
    tree = write_tree(tmp_path / "tree", patients=30, size=64, seed=3).out
    assert pictures.phantom_seed(tree) == 3
    assert pictures.phantom_seed(tmp_path) is None
    found = pictures.read_phantoms(tree, 64, limit=100)
    rows = [json.loads(line) for line in (tree / "phantom-truth.jsonl").read_text().splitlines()]
    assert len(found) == sum(row["split"] != "train" for row in rows)
    assert {picture.effusion for picture in found} <= set(EFFUSIONS)
    for picture in found:
        assert (picture.effusion == "none") == ("effusion" not in picture.text)
        assert picture.pixels.shape == (64, 64)


def test_asked_and_shown(tmp_path, cached):
    rows = [{"prompt": "p", "effusion": side} for side in EFFUSIONS]
    table = findings.asked_and_shown(write_samples(tmp_path / "samples", rows), cached[1])
    assert [sum(row) for row in table.counts] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p"}], "1 of 1 images have no `effusion`"),
        ([{"prompt": "p", "effusion": "bilateral"}], "effusion 'bilateral'"),
        ([{"prompt": "p", "effusion": "left", "file_name": "gone.png"}], r"gone\.png: no such image"),
        ([{"prompt": "p", "effusion": "left", "file_name": None}], "no file_name"),
        ([], "lists no images"),
    ],
)
def test_folders_that_cannot_be_judged(tmp_path, cached, rows, message):
    with pytest.raises(UserError, match=message):
        findings.asked_and_shown(write_samples(tmp_path / "samples", rows), cached[1])


def test_a_folder_without_manifest(tmp_path, cached):
    with pytest.raises(UserError, match=r"manifest\.jsonl: cannot be read"):
        findings.asked_and_shown(tmp_path, cached[1])
