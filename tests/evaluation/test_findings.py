import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation import findings
from jaxcxr.evaluation.pictures import Picture, read_pictures
from jaxcxr.evaluation.sets import open_set, phantom_seed
from jaxcxr.phantoms.classifier import Seen
from jaxcxr.phantoms.generator import KINDS, Finding
from jaxcxr.phantoms.prompts import EFFUSIONS, Asked, asked_effusion
from jaxcxr.phantoms.scores import Rate
from jaxcxr.phantoms.tree import write_tree
from jaxcxr.phantoms.truth import grades, present
from tests.phantoms.classifiers import untrained


def write_samples(folder, rows):
    """A folder as `jaxcxr sample` leaves it, of gray images."""
    folder.mkdir()
    for index, row in enumerate(rows):
        row.setdefault("file_name", f"{index:05d}.png")
        Image.fromarray(np.full((64, 64), 20 * index, np.uint8)).save(folder / f"{index:05d}.png")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


LEFT, RIGHT = Finding("nodule", "left", zone="mid", mm=12), Finding("nodule", "right", zone="mid", mm=12)
EDEMA = Finding("edema", size="mild")


def report(asked, shown, monkeypatch, **how):
    """The report of pictures that were asked for something and show findings."""
    seen = Seen(np.stack([present(one) for one in shown]), np.stack([grades(one) for one in shown]))
    monkeypatch.setattr(findings, "see", lambda *_: seen)
    return findings.report([Picture(np.zeros((64, 64), np.uint8), "", one) for one in asked], untrained(), **how)


def test_a_picture_is_right_if_it_shows_what_was_asked_for_of_the_kinds_asked_about(monkeypatch):
    asked = [Asked((LEFT,))] * 4 + [asked_effusion("none")] * 2
    shown = [[LEFT], [LEFT, EDEMA], [RIGHT], [LEFT, RIGHT], [EDEMA], [Finding("effusion", "left", "small")]]
    one = report(asked, shown, monkeypatch)
    assert one.right.tolist() == [True, True, False, False, True, False]
    assert one.rate == Rate(3, 6)
    assert one.classes["left nodule"].sensitivity == Rate(3, 4)
    assert one.classes["right nodule"].specificity == Rate(4, 6)
    assert one.classes["edema"].specificity == Rate(4, 6), "a class that no prompt names is not asked for"
    assert one.classes["edema"].sensitivity == Rate(0, 0)


def test_other_kinds_count_for_phantoms_if_they_are_asked_about(monkeypatch):
    truth = [Asked((LEFT, EDEMA), tuple(kind for kind in KINDS if kind not in ("nodule", "edema")))]
    assert report(truth, [[LEFT]], monkeypatch).rate == Rate(0, 1)
    assert report(truth, [[LEFT]], monkeypatch, kinds={"nodule"}).rate == Rate(1, 1)


def test_sizes_are_counted_where_they_were_asked_for(monkeypatch):
    asked = [Asked((EDEMA,)), Asked((Finding("edema", size="severe"),)), asked_effusion("left")]
    one = report(asked, [[EDEMA], [EDEMA], [Finding("effusion", "left", "small")]], monkeypatch)
    assert one.grades["edema"] == Rate(1, 2)
    assert one.grades["effusion"] == Rate(0, 0)


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
        phantom_seed(tmp_path)
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
        open_set(tree)


def test_phantom_truth_is_read_from_the_tree(tmp_path):
    tree = write_tree(tmp_path / "tree", patients=30, size=64, seed=3).out
    assert phantom_seed(tree) == 3
    assert phantom_seed(tmp_path) is None
    found = read_pictures(open_set(tree), 64)
    rows = [json.loads(line) for line in (tree / "phantom-truth.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] != "train"]
    assert len(found) == len(rows)
    for picture, row in zip(found, rows, strict=True):
        assert [f.kind for f in picture.asked.findings] == [f["kind"] for f in row["findings"]]
        assert picture.asked.kinds == set(KINDS)
        assert ("effusion" in picture.asked.denied) == ("effusion" not in picture.text)
        assert picture.pixels.shape == (64, 64)


def test_what_was_asked_for_is_read_from_the_manifest_old_or_new(tmp_path):
    rows = [{"prompt": "p", "effusion": side} for side in EFFUSIONS]
    rows.append({"prompt": "p", "asked": [LEFT.as_dict(), EDEMA.as_dict()], "denied": ["effusion"]})
    rows.append({"prompt": "p"})
    asked = [item.asked for item in open_set(write_samples(tmp_path / "samples", rows)).items]
    assert asked == [*map(asked_effusion, EFFUSIONS), Asked((LEFT, EDEMA), ("effusion",)), None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "effusion": "bilateral"}], "effusion 'bilateral'"),
        ([{"prompt": "p", "effusion": "left", "file_name": "gone.png"}], r"has no file 'gone\.png'"),
        ([{"prompt": "p", "effusion": "left", "file_name": None}], "no file_name"),
        ([{"prompt": "p", "asked": [{"kind": "fracture"}]}], "image 1: no phantom has 'fracture'; ask for"),
        (
            [{"prompt": "p", "asked": [{"kind": "edema", "side": "left", "size": "mild"}]}],
            "has 'edema left mild'; ask for",
        ),
        ([{"prompt": "p", "asked": [], "denied": ["fracture"]}], "denies 'fracture'; choose from effusion"),
        ([{"prompt": "p", "asked": "left"}], "line 1: Expected `array"),
        ([{"asked": [EDEMA.as_dict()], "denied": ["edema"]}], "names edema twice"),
        ([], "lists no images"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        open_set(write_samples(tmp_path / "samples", rows))
