"""An evaluation: rows for all and by group, doubles and what cannot be read counted, the same numbers each time."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation import evaluate as module
from jaxcxr.evaluation import extractors
from jaxcxr.evaluation.comparison import Features, compare
from jaxcxr.evaluation.evaluate import evaluate
from jaxcxr.evaluation.features import extract
from jaxcxr.evaluation.metrics import similarity
from jaxcxr.evaluation.sets import open_set
from jaxcxr.evaluation.settings import Settings, defaults, read
from tests.evaluation import small

SETTINGS = Settings(extractors=("small",), metrics=("fd", "kid", "prdc"), draws=5)


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "small", small.EXTRACTOR)


@pytest.fixture
def sets(tmp_path):
    real = small.write_images(tmp_path / "real", 30, seed=1)
    good = small.write_images(tmp_path / "good", 30, seed=2)
    bad = small.write_images(tmp_path / "bad", 30, seed=3, blur=0.5)
    return real, good, bad


def names(rows, **wanted):
    return [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]


def test_every_set_is_compared_and_the_worse_one_scores_worse(tmp_path, sets):
    real, good, bad = map(open_set, sets)
    found = evaluate(real, [good, bad], SETTINGS, 20, tmp_path / "kept")
    assert [(row.set, row.metric) for row in found.rows] == list(
        itertools.product(("good", "bad"), ("fd", "kid", "precision", "recall", "density", "coverage"))
    )
    for row in found.rows:
        assert (row.extractor, row.group, row.n) == ("small/plain", "", 15)
    ours, theirs = (names(found.rows, set=name, metric="fd")[0] for name in ("good", "bad"))
    assert theirs.low > 10 * ours.high
    assert ours.value < 3 * ours.floor
    assert ours.floor == pytest.approx(theirs.floor), "one reference for all"
    values = [extract(each, extractors.choose_all(["small"])[0], 20, tmp_path / "kept").values for each in (real, good)]
    patients = np.arange(30)
    wanted, _ = compare(
        *(Features(each, patients) for each in values), ["fd"], of="good", extractor="small/plain", draws=5
    )
    assert ours.value == pytest.approx(wanted[0].value, rel=0.5)


def test_numbers_are_the_same_each_time_and_of_another_seed_others(tmp_path, sets):
    real, good, _ = map(open_set, sets)
    one, two, other = (evaluate(real, [good], SETTINGS, 20, tmp_path / "kept", seed).rows for seed in (0, 0, 1))
    assert one == two != other


def test_groups_that_both_sets_have(tmp_path, sets):
    for folder, labels in zip(sets[:2], (["a", "b"], ["a", "c"]), strict=True):
        rows = [{"file_name": f"{number:03}.png", "labels": [labels[number % 2]], "sex": "F"} for number in range(30)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    real, good, _ = map(open_set, sets)
    found = evaluate(real, [good], SETTINGS, 20, tmp_path / "kept")
    assert {row.group for row in found.rows} == {"", "label=a"}, "one sex is no group"
    assert {row.n for row in names(found.rows, group="label=a")} == {7}
    none = evaluate(real, [good], dataclasses.replace(SETTINGS, groups=()), 20, tmp_path / "kept")
    assert none.rows == names(found.rows, group="")


def test_doubles_and_copies_are_counted(tmp_path, sets):
    real, good, _ = sets
    shutil.copy(real / "000.png", real / "double.png")
    shutil.copy(real / "001.png", good / "copy.png")
    (good / "broken.png").write_bytes(b"no picture")
    found = evaluate(open_set(real), [open_set(good)], SETTINGS, 20, tmp_path / "kept")
    assert found.counts == {
        "real": {"images": 30, "unreadable": 0, "duplicates left out": 1},
        "good": {"images": 31, "unreadable": 1, "equal to a real image": 1},
    }


def test_a_part_of_each_set_drawn_at_random(tmp_path, sets):
    real, good, _ = map(open_set, sets)
    found = evaluate(real, [good], dataclasses.replace(SETTINGS, images=20), 20, tmp_path / "kept")
    assert {row.n for row in found.rows} == {10}
    assert found.counts["real"]["images"] == 20
    assert module.some(real, 20, 0).items != list(real.items[:20])


def test_whole_sets_once_as_published(tmp_path, sets):
    real, good, _ = map(open_set, sets)
    published = dataclasses.replace(SETTINGS, as_published=True, metrics=("fd",))
    (row,) = evaluate(real, [good], published, 20, tmp_path / "kept").rows
    assert (row.n, row.low, row.floor) == (30, None, None)


def test_likeness_within_prompts(tmp_path, sets):
    _, good, _ = sets
    rows = [{"file_name": f"{number:03}.png", "text": f"prompt {number // 3}"} for number in range(30)]
    (good / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dataclasses.replace(SETTINGS, metrics=("ssim_within",))
    found = evaluate(open_set(sets[0]), [open_set(good)], settings, 20, tmp_path / "kept")
    pixels = np.stack([np.asarray(Image.open(good / row["file_name"])) / 255 for row in rows]).reshape(10, 3, 20, 20)
    means = [
        np.mean([similarity.ssim(some[[a]], some[[b]])[0] for a, b in itertools.combinations(range(3), 2)])
        for some in pixels
    ]
    (row,) = found.rows
    assert (row.set, row.metric, row.extractor, row.n) == ("good", "ssim_within", "", 10)
    assert row.value == pytest.approx(np.mean(means), rel=1e-9)
    assert row.low < row.value < row.high
    assert row.floor is None
    assert found.left_out == [
        "real: no two patients have a report in common; ssim_within has no floor",
        "good: MS-SSIM needs a side of more than 160 pixels; SSIM in its place",
    ]
    alone = evaluate(open_set(good), [open_set(sets[0])], settings, 20, tmp_path / "kept")
    assert not alone.rows
    assert "needs two images of one size of a prompt" in alone.left_out[-1]


def test_the_floor_of_likeness_is_of_patients_whose_reports_say_the_same(tmp_path, sets):
    real, good, _ = sets
    rows = [
        {"file_name": f"{number:03}.png", "text": f"report {number // 10}", "patient": f"{number // 2}"}
        for number in range(30)
    ]
    for folder in (real, good):
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dataclasses.replace(SETTINGS, metrics=("ssim_within",))
    (row,) = evaluate(open_set(real), [open_set(good)], settings, 20, tmp_path / "kept").rows
    pixels = np.stack([np.asarray(Image.open(real / row["file_name"])) / 255 for row in rows]).reshape(3, 10, 20, 20)
    firsts = pixels[:, :8:2]  # of the first four patients of each text
    wanted = np.mean(
        [similarity.ssim(some[[a]], some[[b]])[0] for some in firsts for a, b in itertools.combinations(range(4), 2)]
    )
    assert row.floor == pytest.approx(wanted, rel=1e-9)
    assert row.floor_low < row.floor < row.floor_high


def test_two_sets_of_one_name(tmp_path, sets):
    real, good, _ = map(open_set, sets)
    with pytest.raises(UserError, match="--generated: two sets are called good; rename one's folder"):
        evaluate(real, [good, good], SETTINGS, 20, tmp_path / "kept")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("metrics", ("fid",), r"config\.evaluation\.metrics: 'fid' may be fd, fd_infinity"),
        ("groups", ("age", "weight"), r"config\.evaluation\.groups: 'weight' may be label, view"),
        ("draws", 1, r"config\.evaluation: .*>= 2.*draws"),
        ("images", -1, r"config\.evaluation: .*>= 0.*images"),
    ],
)
def test_settings_that_there_are_not(key, value, message):
    section = defaults()
    section[key] = value
    with pytest.raises(UserError, match=message):
        read(section)


def test_images_and_their_texts(tmp_path, sets, monkeypatch):
    """A network whose text features are those of the image that a text is of finds every one."""
    wanted = dataclasses.replace(SETTINGS, metrics=("clip_score", "alignment", "retrieval"))
    for folder in sets[:2]:
        rows = [{"file_name": f"{number:03}.png", "text": f"{folder.name}/{number:03}.png"} for number in range(30)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def embed(file, names):
        one = extractors.choose_all(["small"])[0]
        found = {each.name: dict(zip(_texts(each), extract(each, one, 20, tmp_path / "kept").values, strict=True))
                 for each in map(open_set, sets[:2])}  # fmt: skip
        return np.stack([found[name.split("/")[0]][name] + (name.startswith("good/00")) for name in names])

    monkeypatch.setitem(extractors.EXTRACTORS, "small", dataclasses.replace(small.EXTRACTOR, text=embed))
    real, good, bad = map(open_set, sets)
    found = evaluate(real, [good, bad], wanted, 20, tmp_path / "kept")
    rows = {row.metric: row for row in found.rows}
    assert rows["recall_at_1/image_to_text"].floor == 1
    assert rows["recall_at_1/image_to_text"].value == pytest.approx(20 / 30, abs=0.11), "a third of the texts are off"
    assert rows["median_rank/text_to_image"].value == 1
    assert rows["alignment"].floor == pytest.approx(1)
    assert 0.5 < rows["alignment"].value < 1
    assert rows["clip_score"].value == pytest.approx(100 * rows["alignment"].value)
    assert {row.n for row in found.rows} == {30}
    assert "bad: clip_score, alignment, retrieval need texts; none of its images has one" in found.left_out


def _texts(images):
    return [item.text for item in images.items]


def test_the_nearest_real_image_of_a_copy_is_its_original(tmp_path, sets):
    real, good, _ = sets
    shutil.copy(real / "007.png", good / "copy.png")
    both = open_set(real), [open_set(good)]
    assert not evaluate(*both, SETTINGS, 20, tmp_path / "kept").nearest
    found = evaluate(*both, SETTINGS, 20, tmp_path / "kept", nearest=True).nearest
    assert len(found) == 20
    assert [each.distance for each in found] == sorted(each.distance for each in found)
    first = found[0]
    assert first.distance == pytest.approx(0, abs=1e-5)
    assert "copy.png" in first.generated.stamp
    assert "007.png" in first.real.stamp
