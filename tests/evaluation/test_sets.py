"""Sets of images from any kind of folder, with what is known of each image."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr import config as configs
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError
from jaxcxr.evaluation.sets import open_set
from jaxcxr.phantoms.tree import write_tree
from tests.evaluation import small

ROWS = [
    {"file_name": "000.png", "text": "one", "labels": ["edema", "effusion"], "patient": "p1", "sex": "F", "age": 43},
    {"file_name": "001.png", "prompt": "two", "labels": [], "patient": "p1", "view": "AP", "age": "91"},
    {"file_name": "002.png", "race": "asian", "age": "unknown"},
]


@pytest.fixture
def folder(tmp_path):
    return small.write_images(tmp_path / "images", 3, seed=1)


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_without_a_table_is_its_pictures_by_name(folder):
    (folder / "notes.txt").write_text("no picture")
    found = open_set(folder)
    assert (found.name, found.kind, len(found.items)) == ("images", "folder", 3)
    assert len({item.patient for item in found.items}) == 3
    np.testing.assert_array_equal(found.items[1].load(0), np.asarray(Image.open(folder / "001.png")))
    assert found.items[1].load(8).shape == (8, 8)
    assert found.side() == 20
    assert not any(item.text or item.asked or item.groups for item in found.items)


def test_a_table_says_what_is_known_of_each_image(folder):
    write_rows(folder, ROWS)
    one, two, three = open_set(folder).items
    assert (one.text, one.patient) == ("one", "p1")
    assert one.groups == {"label": ("edema", "effusion"), "view": (), "sex": ("F",), "age": ("40-59",), "race": ()}
    assert (two.text, two.patient, two.groups["label"]) == ("two", "p1", ("no finding",))
    assert (two.groups["view"], two.groups["age"]) == (("AP",), ("80 and more",))
    assert (three.groups["label"], three.groups["age"], three.groups["race"]) == ((), (), ("asian",))
    assert three.patient not in ("", "p1")


def test_a_csv_says_the_same(folder):
    write_rows(folder, ROWS)
    wanted = [item._replace(load=None) for item in open_set(folder).items]
    (folder / "metadata.jsonl").unlink()
    lines = [
        "file_name,text,labels,patient,sex,age,view,race",
        "000.png,one,edema|effusion,p1,F,43,,",
        "001.png,two,,p1,,91,AP,",
        "002.png,,,,,unknown,,asian",
    ]
    (folder / "prompts.csv").write_text("\n".join(lines))
    found = [item._replace(load=None) for item in open_set(folder).items]
    assert [item._replace(groups={}) for item in found] == [item._replace(groups={}) for item in wanted]
    assert found[0].groups == wanted[0].groups


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}], "row 1 has no file_name"),
        ([{"file_name": "gone.png"}], r"has no file 'gone\.png'"),
        ([{"file_name": "../../secret.png"}], "outside of it"),
        ([{"file_name": "000.png", "labels": "edema"}], "row 1 has labels that are no list"),
        ([], "lists no images"),
    ],
)
def test_tables_that_cannot_be_read(folder, rows, message):
    write_rows(folder, rows)
    with pytest.raises(UserError, match=message):
        open_set(folder)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("images:test", "images:test: only a prepared folder has splits; leave out :test"),
        ("images:bogus", "images:bogus: no such folder"),
    ],
)
def test_places_that_are_none(folder, place, message):
    with pytest.raises(UserError, match=message):
        open_set(folder.parent / place)


def test_a_split_that_is_none(tmp_path):
    (tmp_path / "summary.json").touch()
    with pytest.raises(UserError, match=r"has no split 'bogus'; name one of train, validate, test"):
        open_set(f"{tmp_path}:bogus")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="has no JPEG or PNG files"):
        open_set(tmp_path)


def test_phantoms_are_those_that_nobody_trains_on(tmp_path):
    tree = write_tree(tmp_path / "tree", patients=20, size=64, seed=3).out
    found = open_set(tree)
    rows = [json.loads(line) for line in (tree / "phantom-truth.jsonl").read_text().splitlines()]
    assert found.kind == "phantoms"
    held_out = [row for row in rows if row["split"] != "train"]
    assert [item.patient for item in found.items] == [str(row["subject_id"]) for row in held_out]
    for item, row in zip(found.items, held_out, strict=True):
        kinds = list(dict.fromkeys(finding["kind"] for finding in row["findings"]))
        assert item.groups["label"] == (tuple(kinds) or ("no finding",))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tree = write_tree(folder / "tree", patients=30, size=64, seed=3).out
    config = configs.load("configs/quickstart.py")
    prepare(config.data, tree, folder / "prepared")
    return folder / "prepared"


def test_a_prepared_folder_is_its_test_split_or_the_one_that_is_named(prepared):
    summary = json.loads((prepared / "summary.json").read_text())
    named = {split: open_set(f"{prepared}:{split}") for split, count in summary["splits"].items() if count}
    assert {split: len(found.items) for split, found in named.items()} == {
        split: count for split, count in summary["splits"].items() if count
    }
    usual = open_set(prepared)
    assert (usual.kind, usual.stamp) == ("prepared", named["test" if "test" in named else "validate"].stamp)
    assert len({found.stamp for found in named.values()}) == len(named)
    one = named["train"].items[0]
    assert one.load(0).shape == (summary["settings"]["size"],) * 2
    assert one.load(16).shape == (16, 16)
    assert one.text
    assert one.groups["label"]
    assert one.groups.keys() == {"label", "view", "sex", "age", "race"}
    np.testing.assert_array_equal(named["train"].items[:2][1].load(0), named["train"].items[1].load(0))


def test_what_is_known_of_a_patient_is_kept_by_prepare_and_read_again(tmp_path):
    folder = small.write_images(tmp_path / "images", 4, seed=1)
    rows = [
        {
            "file_name": f"{number:03}.png",
            "text": "No finding is seen.",
            "sex": "female",
            "age": 30 + number,
            "race": "",
        }
        for number in range(4)
    ]
    write_rows(folder, rows)
    config = configs.load("configs/base.py").data
    config.size, config.views, config.tokenizer_vocab, config.min_words = 16, (), 600, 0
    prepare(config, folder, tmp_path / "data")
    found = open_set(f"{tmp_path / 'data'}:train").items
    assert {item.groups["sex"] for item in found} == {("female",)}
    assert {item.groups["age"] for item in found} == {("20-39",)}
    assert {item.groups["race"] for item in found} == {()}


def test_what_a_manifest_says_of_patients(tmp_path):
    folder = small.write_images(tmp_path / "images", 2, seed=1)
    rows = [
        {"file_name": "000.png", "prompt": "p", "sex": "male", "age": 64, "labels": []},
        {"file_name": "001.png", "prompt": "p", "labels": "Edema", "view": "PA"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = open_set(folder).items
    assert (one.groups["sex"], one.groups["age"], one.groups["label"]) == (("male",), ("60-79",), ("no finding",))
    assert (two.groups["label"], two.groups["view"], two.groups["sex"]) == (("Edema",), ("PA",), ())
