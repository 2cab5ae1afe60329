import json
from collections import Counter

import numpy as np
import pytest
from trees import image_folder, mimic_tree, rows, small_config

from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.mixture import Joined, Order, Part, by_rarest_label, weighted
from jaxcxr.data.prepare import prepare
from jaxcxr.data.raw import RawSplit
from jaxcxr.data.settings import Settings
from jaxcxr.errors import UserError

COMMON, RARE, NONE = 40, 6, 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """40 images with Edema, of which 6 have Fracture too, and 10 with nothing."""
    root = tmp_path_factory.mktemp("mixture")
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA"} for n in range(COMMON + NONE)]
    for number, line in enumerate(lines[:COMMON]):
        line["labels"] = ["Edema", "Fracture"] if number < RARE else ["Edema"]
    prepare(small_config(validate_share=0.0), image_folder(root / "raw", lines), root / "out")
    return root / "out"


def drawn(parts, count, seed=0, shuffle=True):
    whole = Order(parts, seed, shuffle)[np.arange(count)]
    pieces = [Order(parts, seed, shuffle)[np.arange(n, min(n + 7, count))] for n in range(0, count, 7)]
    assert np.array_equal(np.concatenate(pieces), whole), "an index has its place whatever was asked before"
    return whole.tolist()


def test_parts_take_turns_by_their_weights():
    parts = [Part(range(100), 3.0), Part(range(100, 110), 1.0)]
    found = drawn(parts, 400)
    assert sum(place < 100 for place in found) == 300
    assert sorted(found[:400])[:300] == sorted(3 * list(range(100))), "every epoch of a part has each of its records"
    assert all(75 - 2 <= sum(p < 100 for p in found[n : n + 100]) <= 75 + 2 for n in range(0, 300, 50))
    assert drawn(parts, 50) == found[:50]
    assert drawn(parts, 50, seed=1) != found[:50]
    assert [place for place in drawn(parts, 16, shuffle=False) if place < 100] == list(range(12))


def test_one_part_is_drawn_as_without_parts(prepared):
    source, tokenizer = open_split(prepared, "train"), tokens.load(prepared / "tokenizer")
    plain = Batches(source, tokenizer=tokenizer, seed=4, batch_size=8)
    parts = weighted([Part(range(len(source)), 1.0)], 1.0, 0)
    assert [plain.ids(n) for n in range(9)] == [
        Batches(source, tokenizer=tokenizer, seed=4, batch_size=8, parts=parts).ids(n) for n in range(9)
    ]


@pytest.mark.parametrize(
    ("strength", "share"),
    [(0.0, (6 / 50, 34 / 50, 10 / 50)), (1.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, None)],
)
def test_rare_labels_are_drawn_more_often(prepared, strength, share):
    parts = by_rarest_label(prepared, "train", strength)
    assert sorted(place for part in parts for place in part.places) == list(range(COMMON + NONE))
    source = open_split(prepared, "train")
    found = Counter(max([label.decode() for label in source[n]["labels"]], default="") for n in drawn(parts, 3000))
    share = share or np.sqrt([6, 34, 10]) / np.sqrt([6, 34, 10]).sum()
    for label, expected in zip(("Fracture", "Edema", ""), share, strict=True):
        assert abs(found[label] / 3000 - expected) < 0.005, label


def test_rebalancing_needs_a_strength_and_labels(prepared, tmp_path):
    with pytest.raises(UserError, match=r"rebalance=1\.5: give a number from 0 to 1"):
        by_rarest_label(prepared, "train", 1.5)
    with pytest.raises(UserError, match="no labels to rebalance by: prepare again"):
        by_rarest_label(tmp_path, "train", 0.5)


def test_joined_sources_are_read_as_one(prepared):
    source = open_split(prepared, "train")
    joined = Joined([source, ["a", "b"], source])
    assert len(joined) == 2 * len(source) + 2
    assert joined.starts == [0, 50, 52, 102]
    places = [101, 0, 51, 50, 52, 0]
    found = [joined[place] for place in places]
    assert found[2:4] == ["b", "a"]
    assert [found[n]["id"] for n in (0, 1, 4, 5)] == [source[n]["id"] for n in (49, 0, 0, 0)]
    assert joined[51] == "b"


def test_weights_hold_between_folders(prepared):
    moved = weighted(by_rarest_label(prepared, "train", 1.0), 0.25, 1000)
    assert sum(part.weight for part in moved) == pytest.approx(0.25)
    assert min(min(part.places) for part in moved) == 1000


def test_raw_data_are_read_as_they_are_prepared(tmp_path):
    members = rows()
    members[2].write_image = False
    tree = mimic_tree(tmp_path / "raw", members)
    config = small_config()
    prepare(config, tree, tmp_path / "out")
    expected = {record["id"].decode(): record for record in open_split(tmp_path / "out", "train")}
    raw = RawSplit(tree, Settings.from_config(config), "train")
    assert len(raw) == 12
    names = [raw[place]["id"] for place in range(12)]
    assert names == [row.dicom for row in (*members[:2], members[3], *members[3:12])], "the next one stands in"
    for place in (0, 5, 11):
        record = raw[place]
        assert record["image"] == expected[record["id"]]["image"]
        assert [text.encode() for text in record["prompts"]] == list(expected[record["id"]]["prompts"])
    batch = Batches(raw, tokenizer=tokens.load(tmp_path / "out" / "tokenizer"), seed=0, batch_size=4).batch(0)
    assert batch["image"].shape == (4, 16, 16, 1)
    with pytest.raises(UserError, match="no image in split 'holdout'"):
        RawSplit(tree, Settings.from_config(config), "holdout")


def test_labels_of_the_folder_are_those_of_its_records(prepared):
    places = json.loads((prepared / "labels.json").read_text())["train"]
    assert {label: len(found) for label, found in places.items()} == {"": NONE, "Edema": COMMON, "Fracture": RARE}
