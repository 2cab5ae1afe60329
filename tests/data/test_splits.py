"""The split `validate` that is carved out of train where the source has none."""

import dataclasses
import hashlib
import json
import random

import pytest
from PIL import Image
from trees import everything, image_folder, mimic_tree, picture, rows, small_config

from jaxcxr import config as configs
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.data.raw import RawSplit
from jaxcxr.data.records import Candidate, Rejected
from jaxcxr.data.settings import Settings
from jaxcxr.data.source import open_source
from jaxcxr.data.splits import carve
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.training.checkpoint import check_workdir
from tests.training.runs import ROOT


def candidates(patients, images=2, split="train"):
    return [Candidate(f"{p}/{n}", split, str(p), "", "", (), "", {}) for p in range(patients) for n in range(images)]


def validated(found):
    return {each.patient for each in found if each.split == "validate"}


def test_a_share_of_the_patients_is_carved_whole_whatever_their_order():
    listed = candidates(2000)
    found, share = carve(listed, 0.05)
    assert [each.id for each in found] == [each.id for each in listed]
    chosen = validated(found)
    assert 70 < len(chosen) < 130
    assert share == len(chosen) / 2000
    assert not chosen & {each.patient for each in found if each.split == "train"}
    random.Random(0).shuffle(listed)
    assert validated(carve(listed, 0.05)[0]) == chosen
    assert validated(carve(candidates(1000), 0.05)[0]) == {patient for patient in chosen if int(patient) < 1000}
    assert validated(carve(listed, 0.01)[0]) < chosen


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_of_two_patients_one_is_carved_and_of_one_none(share):
    assert validated(carve(candidates(1), share)[0]) == set()
    assert len(validated(carve(candidates(2), share)[0])) == 1
    for count in range(3, 30):
        assert 1 <= len(validated(carve(candidates(count), share)[0])) < count


def test_test_patients_are_not_carved():
    found, _ = carve([*candidates(0), *candidates(50, split="test")], 0.5)
    assert validated(found) == set()


def test_p19_gets_a_validate_split_that_is_told(tmp_path, capsys):
    members = rows(train=40, validate=0, test=0)
    for row in members[-6:]:
        row.number += 18_000_000  # subjects 19…
    tree = mimic_tree(tmp_path / "raw", members)
    summary = prepare(small_config(split="p19"), tree, tmp_path / "out", workers=1)
    validate, train = (everything(tmp_path / "out", split) for split in ("validate", "train"))
    assert summary.splits == {"train": len(train), "validate": len(validate), "test": 6}
    assert validate
    assert len(train) > len(validate)
    patients = [{record["patient"] for record in split.values()} for split in (validate, train)]
    assert not patients[0] & patients[1]
    told = f"carved from train by patient, {100 * len(patients[0]) / 17:.2g} % of its patients"
    assert f"validate: {told}" in capsys.readouterr().out
    assert told in (tmp_path / "out/README.md").read_text()
    assert summary.carved == len(patients[0]) / 17
    prepare(small_config(split="p19"), tree, tmp_path / "two", workers=2)
    assert everything(tmp_path / "two", "validate").keys() == validate.keys()
    raw = RawSplit(tree, Settings.from_config(small_config(split="p19")), "validate")
    assert {raw[place]["id"].encode() for place in range(len(raw))} == {record["id"] for record in validate.values()}


def test_a_source_with_a_validate_split_keeps_it(tmp_path):
    members = rows()
    tree = mimic_tree(tmp_path / "raw", members)
    summary = prepare(small_config(), tree, tmp_path / "out")
    assert (summary.splits["validate"], summary.carved) == (4, 0)
    assert "carved" not in (tmp_path / "out/README.md").read_text()
    for row in members[12:16]:
        row.view = "LATERAL"  # all of its own are left out, which is what was asked for
    summary = prepare(small_config(), mimic_tree(tmp_path / "lateral", members), tmp_path / "none")
    assert (summary.splits["validate"], summary.carved) == (0, 0)


def test_image_folders_and_folders_of_classes_without_validate_get_one(tmp_path):
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA", "patient": n // 3} for n in range(12)]
    summary = prepare(small_config(), image_folder(tmp_path / "flat", lines), tmp_path / "out")
    assert summary.splits["validate"] in (3, 6)
    assert summary.carved
    one = [line | {"patient": 7} for line in lines]
    summary = prepare(small_config(), image_folder(tmp_path / "one", one), tmp_path / "alone")
    assert (summary.splits, summary.carved) == ({"train": 12, "validate": 0, "test": 0}, 0)
    for number in range(12):
        path = tmp_path / "classes" / ("normal", "edema")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    config = small_config(views=(), prompts=("A {label} chest.",))
    assert prepare(config, tmp_path / "classes", tmp_path / "of-classes").splits["validate"] > 0
    config.validate_share = 0.0
    assert prepare(config, tmp_path / "classes", tmp_path / "none").splits["validate"] == 0


def test_official_splits_without_validate_get_one(tmp_path):
    source = open_source(mimic_tree(tmp_path / "raw", rows(validate=0)), Settings.from_config(small_config()))
    ledger = Ledger()
    assert validated(source.candidates(ledger))
    assert ledger.carved


@pytest.mark.parametrize("share", [-0.1, 0.6, 5.0])
def test_a_share_out_of_range_is_named(tmp_path, share):
    with pytest.raises(UserError, match=rf"data.validate_share is {share}: give a number from 0 to 0.5"):
        prepare(small_config(validate_share=share), tmp_path, tmp_path / "out")


def test_a_folder_prepared_before_is_read(tmp_path):
    prepare(small_config(), mimic_tree(tmp_path / "raw", rows()), tmp_path / "out")
    file = tmp_path / "out/summary.json"
    old = json.loads(file.read_text())
    del old["carved"]
    for key in ("channels", "validate_share", "max_pixels", "max_report_bytes"):
        del old["settings"][key]
    file.write_text(json.dumps(old))
    assert Summary.require(tmp_path / "out").carved == 0
    assert len(open_split(tmp_path / "out", "validate", 16)) == 4


def fingerprint_before(tree, config):
    """As the version without these keys has made it."""
    source = open_source(tree, Settings.from_config(config))
    chosen = dataclasses.asdict(source.settings)
    for key in ("channels", "validate_share", "max_pixels", "max_report_bytes", "max_bad_share"):
        del chosen[key]
    digest = hashlib.sha256(json.dumps([source.name, chosen], sort_keys=True).encode())
    for path in source.tables(tree):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def make_old(out, tree, config):
    """Makes a prepared folder one of the version before."""
    old = json.loads((out / "summary.json").read_text())
    for key in ("channels", "validate_share", "max_pixels", "max_report_bytes"):
        del old["settings"][key]
    del old["carved"]
    (out / "summary.json").write_text(json.dumps({**old, "fingerprint": fingerprint_before(tree, config)}))


def test_a_folder_prepared_before_of_a_source_with_a_validate_split_is_recognised(tmp_path, capsys):
    tree, config = mimic_tree(tmp_path / "raw", rows()), small_config()
    made = prepare(config, tree, tmp_path / "out")
    make_old(tmp_path / "out", tree, config)
    for change in ({}, {"validate_share": 0.1}, {"max_pixels": 10**6}, {"max_report_bytes": 9999}):
        assert prepare(small_config(**change), tree, tmp_path / "out").splits == made.splits
        assert "already prepared" in capsys.readouterr().out
    assert made.fingerprint == fingerprint_before(tree, config), "a run may take the folder made again"


def test_a_folder_prepared_before_of_a_source_without_one_is_recognised_as_uncarved_alone(tmp_path, capsys):
    tree, whole = mimic_tree(tmp_path / "raw", rows(validate=0)), small_config(validate_share=0.0)
    prepare(whole, tree, tmp_path / "out")
    make_old(tmp_path / "out", tree, whole)
    with pytest.raises(UserError, match="other settings or from another source, or by an earlier version that"):
        prepare(small_config(), tree, tmp_path / "out")
    capsys.readouterr()
    prepare(whole, tree, tmp_path / "out")
    assert "already prepared" in capsys.readouterr().out
    carved = prepare(small_config(), tree, tmp_path / "carved")
    assert carved.fingerprint != fingerprint_before(tree, whole)
    assert prepare(small_config(max_pixels=10**6), tree, tmp_path / "carved") == carved
    for share in (0.0, 0.3):
        with pytest.raises(UserError, match="prepared with other settings"):
            prepare(small_config(validate_share=share), tree, tmp_path / "carved")


NAMES = ("PA erect view", "AP, portable", "Lateral - left", "PA – supine", "view:PA", "LEFT ANTERIOR OBLIQUE", "AP")


def test_views_of_several_words_are_names_and_sentences_are_not(tmp_path):
    for view in ("", *NAMES):
        Candidate("i", "train", "p", "s", view, (), "0.png", {}).check_words()
    for text in ("Lungs are clear.", "FINDINGS: clear", "No. Effusion", "a b c d e f g", 65 * "x", "PA\nview", " "):
        for view, labels in ((text, ()), ("PA", (text,))):
            with pytest.raises(Rejected, match="_is_no_name"):
                Candidate("i", "train", "p", "s", view, labels, "0.png", {}).check_words()
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": view} for n, view in enumerate(NAMES)]
    summary = prepare(small_config(views=(), validate_share=0.0), image_folder(tmp_path / "raw", lines), tmp_path / "o")
    assert set(summary.views["train"]) == set(NAMES)


def test_a_run_of_before_these_settings_were_there_resumes(tmp_path):
    config = configs.load(ROOT / "configs/base.py")
    old = json.loads(configs.to_json(config))
    for key in ("channels", "validate_share", "max_pixels", "max_report_bytes"):
        del old["data"][key]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_workdir(tmp_path, config)
    changed = configs.changed(config, ["--config.data.validate_share=0.1"])
    with pytest.raises(UserError, match=r"data.validate_share was 0.05, is 0.1"):
        check_workdir(tmp_path, changed)
