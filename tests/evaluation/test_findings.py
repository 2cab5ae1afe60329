import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

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


@pytest.mark.parametrize("damage", ["shape", "dtype", "nan", "missing", "settings", "counts", "text"])
def test_a_damaged_classifier_is_refused(cached, tmp_path, damage):
    with safe_open(cached[0], "numpy") as tensors:
        parameters = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        about = json.loads(tensors.metadata()[findings._MARK])
    if damage == "shape":
        parameters["out.kernel"] = parameters["out.kernel"][:, :1]
    elif damage == "dtype":
        parameters["out.kernel"] = parameters["out.kernel"].astype(np.float64)
    elif damage == "nan":
        parameters["out.kernel"] = np.full_like(parameters["out.kernel"], np.nan)
    elif damage == "missing":
        del parameters["out.kernel"]
    elif damage == "settings":
        about["settings"]["size"] = "large"
    elif damage == "counts":
        about["held_out"][2] = [1, 2]
    text = "{" if damage == "text" else json.dumps(about)
    (tmp_path / "c.safetensors").write_bytes(save(parameters, {findings._MARK: text}))
    with pytest.raises(UserError, match=r"c\.safetensors: .*name another file or remove this one"):
        findings.cached_classifier(tmp_path / "c.safetensors", TINY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "malformed|truncated"),
        ('{"settings": [], "written": {"patients": 1, "studies": 1, "images": 1}}', "Expected `object`"),
        ('{"settings": {"seed": 3}}', "written"),
        ('{"settings": {"seed": -3}, "written": {"patients": 1, "studies": 1, "images": 1}}', "no seed of 0 or more"),
        ('{"settings": {"seed": "3"}, "written": {"patients": 1, "studies": 1, "images": 1}}', "no seed of 0 or more"),
    ],
)
def test_damaged_settings_of_phantoms_are_refused(tmp_path, text, message):
    (tmp_path / "phantom-truth.jsonl").write_text("")
    (tmp_path / "phantom.json").write_text(text)
    with pytest.raises(UserError, match=rf"phantom\.json: .*({message}).*write the phantoms again"):
        pictures.phantom_seed(tmp_path)
    if "seed" not in message:
        with pytest.raises(UserError, match=rf"phantom\.json: .*({message})"):
            write_tree(tmp_path, patients=1, size=64)


def test_the_truth_of_phantoms_names_no_file_outside_of_its_folder(tmp_path):
    tree, other = (write_tree(tmp_path / name, patients=4, size=64, seed=3).out for name in ("tree", "other"))
    rows = [json.loads(line) for line in (tree / "phantom-truth.jsonl").read_text().splitlines()]
    image = next(other.rglob("*.jpg")).with_suffix("")
    for row in rows:
        row["dicom_id"] = f"../../../../../other/{image.relative_to(other)}"
    (tree / "phantom-truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="outside"):
        pictures.read_phantoms(tree, 64, limit=10)


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
        ([{"prompt": "p", "effusion": "left", "file_name": "gone.png"}], r"has no file 'gone\.png'"),
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
