"""Trees whose reports say nothing of a kind: a model of them has never seen its word."""

import csv
import gzip
import json

import pytest

from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.phantoms.tree import write_tree

OTHERS = [kind for kind in KINDS if kind != "effusion"]


def words(tree):
    return " ".join(" ".join(path.read_text().split()) for path in sorted(tree.rglob("s*.txt"))).lower()


def labels(tree):
    with gzip.open(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", "rt") as file:
        return {row["Pleural Effusion"] for row in csv.DictReader(file)}


def test_an_unmentioned_kind_is_neither_shown_nor_stated_nor_denied(tmp_path):
    silent, plain = tmp_path / "silent", tmp_path / "plain"
    argv = ["phantoms", "--patients", "60", "--size", "64", "--findings", ",".join(OTHERS)]
    assert main([*argv, "--out", str(silent), "--unmentioned", "effusion"]) == 0
    assert main([*argv, "--out", str(plain)]) == 0
    assert "effusion" in words(plain)
    assert "0.0" in labels(plain)
    assert "effusion" not in words(silent)
    assert "no pneumothorax" in words(silent)
    assert labels(silent) == {""}
    truth = [json.loads(line) for line in (silent / "phantom-truth.jsonl").read_text().splitlines()]
    assert {finding["kind"] for row in truth for finding in row["findings"]} == set(OTHERS)


def test_what_is_drawn_cannot_be_unmentioned(tmp_path):
    with pytest.raises(UserError, match=r"'effusion' is drawn and unmentioned.*--findings"):
        write_tree(tmp_path / "tree", 3, 64, unmentioned=["effusion"])
    with pytest.raises(UserError, match="'fracture' is unknown"):
        write_tree(tmp_path / "tree", 3, 64, unmentioned=["fracture"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": 1.5}, "prevalence of device is 1.5"),
        ({"left effusion": 0.6, "right effusion": 0.6}, "the effusions together is 1.2"),
    ],
)
def test_a_prevalence_that_is_no_share_is_refused(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        write_tree(tmp_path / "tree", 3, 64, prevalence=given)


def test_shares_of_effusions_may_add_up_to_one(tmp_path):
    shares = {"left effusion": 0.33, "right effusion": 0.56, "bilateral effusion": 0.11}
    assert write_tree(tmp_path / "tree", 3, 64, prevalence=shares).fresh


def test_a_tree_of_other_unmentioned_kinds_is_another_tree(tmp_path):
    write_tree(tmp_path / "tree", 3, 64, findings=OTHERS, unmentioned=["effusion"])
    assert not write_tree(tmp_path / "tree", 3, 64, findings=OTHERS, unmentioned=["effusion"]).fresh
    with pytest.raises(UserError, match="another unmentioned"):
        write_tree(tmp_path / "tree", 3, 64, findings=OTHERS)
