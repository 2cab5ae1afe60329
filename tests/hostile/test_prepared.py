"""The JSON files of prepared folders and caches, mutated."""

import dataclasses
import json

from hypothesis import given

from jaxcxr.data.mixture import by_rarest_label
from jaxcxr.data.moments import Card, Origin
from jaxcxr.data.shards import Account
from jaxcxr.data.summary import Summary
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

SUMMARY = {
    **{"source": "MimicCxr", "records": "records", "fingerprint": "0123", "settings": {"size": 16, "views": ["PA"]}},
    **{"splits": {"train": 3, "validate": 0}, "views": {"train": {"PA": 3}}, "labels": {"train": {"Edema": 2}}},
    **{"fields": {"train": {"report": 3}}, "duplicates": 0, "bad": {"empty_image": 1}, "not_selected": {"view AP": 2}},
    **{"vocab_size": 600, "prompts_cut": {"train": 0}, "carved": 0.05},
}
LABELS = {"train": {"": [1], "Edema": [0, 2]}, "test": {}}
CARD = {
    "origin": {field.name: "0123" for field in dataclasses.fields(Origin)},
    **{"dtype": "bfloat16", "shape": [8, 8, 8], "states_shape": [77, 32], "tokenizer": "0", "splits": {"train": 5000}},
}
BAD = {"table": "metadata.jsonl", "row": 3, "reason": "empty_image", "detail": ""}
LEDGER = {
    **{"kept": {"train": 1}, "views": {"train": {"PA": 1}}, "labels": {"train": {"Edema": 1}}, "carved": 0.0},
    **{"fields": {"train": {"report": 1}}, "not_selected": {"view AP": 1}, "bad": [BAD], "pixels": ["00"]},
}
ACCOUNT = [LEDGER, [["Clear lungs."]], [["Edema"]]]


def written(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def use_summary(folder):
    found = Summary.require(folder)
    assert 0 < found.settings["size"] <= 2**16
    assert str(found)
    assert (folder / found.records).resolve().parent == folder.resolve()
    return found


def use_labels(folder):
    parts = by_rarest_label(folder, "train", 0.5)
    assert all(0 <= place < 3 for part in parts for place in part.places)


def use_card(folder):
    found = Card.read(folder)
    assert len(found.shape) == 3
    return found.shards(folder, "train") if "train" in found.splits else None


def use_account(folder):
    found = Account.read(folder / "account.json")
    assert found.ledger.kept.total() >= 0
    found.ledger.reasons()
    found.ledger.write_quarantine(folder / "quarantine.jsonl")


@given(json_variants(SUMMARY))
def test_a_mutated_summary_is_read_or_refused_in_one_line(tmp_path, value):
    one_line_or_fine(use_summary, written(tmp_path, "summary.json", value))
    Summary.read(tmp_path)


@given(byte_variants(json.dumps(SUMMARY).encode()))
def test_mutated_bytes_of_a_summary_are_read_or_refused_in_one_line(tmp_path, data):
    one_line_or_fine(use_summary, written(tmp_path, "summary.json", data))
    Summary.read(tmp_path)


@given(json_variants(LABELS))
def test_mutated_labels_are_read_or_refused_in_one_line(tmp_path, value):
    written(tmp_path, "summary.json", SUMMARY)
    one_line_or_fine(use_labels, written(tmp_path, "labels.json", value))


@given(byte_variants(json.dumps(LABELS).encode()))
def test_mutated_bytes_of_labels_are_read_or_refused_in_one_line(tmp_path, data):
    written(tmp_path, "summary.json", SUMMARY)
    one_line_or_fine(use_labels, written(tmp_path, "labels.json", data))


@given(json_variants(CARD))
def test_a_mutated_card_of_a_cache_is_read_or_refused_in_one_line(tmp_path, value):
    one_line_or_fine(use_card, written(tmp_path, "cache.json", value))


@given(byte_variants(json.dumps(CARD).encode()))
def test_mutated_bytes_of_a_card_are_read_or_refused_in_one_line(tmp_path, data):
    one_line_or_fine(use_card, written(tmp_path, "cache.json", data))


@given(json_variants(ACCOUNT))
def test_a_mutated_account_of_a_shard_is_read_or_refused_in_one_line(tmp_path, value):
    one_line_or_fine(use_account, written(tmp_path, "account.json", value))


def test_the_valid_ones_are_read(tmp_path):
    for name, content in (("summary", SUMMARY), ("labels", LABELS), ("cache", CARD), ("account", ACCOUNT)):
        written(tmp_path, f"{name}.json", content)
    assert use_summary(tmp_path).carved == 0.05
    use_labels(tmp_path)
    assert len(use_card(tmp_path)) == 3
    use_account(tmp_path)
