import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import (
    LABELS,
    everything,
    image_folder,
    mimic_tree,
    picture,
    quarantine,
    report,
    rows,
    small_config,
    write_table,
)

from jaxcxr.data import images, records, shards
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError


def test_mimic_tree_becomes_records(tmp_path):
    members = rows()
    tree = mimic_tree(tmp_path / "raw", members)
    summary = prepare(small_config(), tree, tmp_path / "out")
    assert summary.splits == {"train": 12, "validate": 4, "test": 4}
    assert summary.views["train"] == {"AP": 6, "PA": 6}
    assert summary.labels["train"] == dict.fromkeys(sorted(LABELS), 3)
    assert summary.bad == summary.not_selected == {}
    assert summary.fields["train"] == {"findings": 12, "impression": 12, "labels": 9, "report": 12, "view": 12}
    assert summary.duplicates == 12, "there are eight pictures"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| records | 12 | 4 | 4 |" in card
    assert "| AP | 6 | 2 | 2 |" in card
    assert "PhysioNet Credentialed Health Data License" in card
    assert Summary.read(tmp_path / "out") == summary
    assert quarantine(tmp_path / "out", tree) == []
    train = everything(tmp_path / "out", "train")
    assert train.keys() == {row.dicom for row in members[:12]}
    record = train[members[5].dicom]
    assert list(record["prompts"]) == [b"Image number 5 is clear."]
    assert record["view"] == b"AP"
    assert record["patient"] == members[5].subject.encode()
    assert [label.decode() for label in record["labels"]] == []
    assert [label.decode() for label in train[members[4].dicom]["labels"]] == ["Cardiomegaly"]
    assert [label.decode() for label in train[members[4].dicom]["uncertain"]] == [LABELS[1]]
    image = images.decode_png(record["image"])
    expected = picture(5).reshape(16, 5, 12, 5).mean((1, 3))
    assert image.shape == (16, 16, 1)
    assert abs(image[2:-2, 4:-4, 0] - expected[2:-2, 2:-2]).max() < 3
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet.convert("L")).std() > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_bad_rows_are_listed_with_their_reason_and_the_rest_goes_on(tmp_path):
    members = rows(train=20)
    sound = mimic_tree(tmp_path / "sound", members[:1]) / "mimic-cxr-jpg/2.1.0" / members[0].folder
    faults = [
        ("unreadable_image", {"image": next(sound.glob("*/*.jpg")).read_bytes()[:700]}),
        ("empty_image", {"image": b""}),
        ("missing_image", {"write_image": False}),
        ("missing_report", {"write_report": False}),
        ("empty_report", {"text": b" \n"}),
        ("no usable section", {"text": report(None).encode()}),
        ("report_not_utf8", {"text": report("Café clear.").encode("latin-1")}),
        ("view LATERAL", {"view": "LATERAL"}),
        ("view empty", {"view": ""}),
        ("too few words", {"text": report("Normal.").encode()}),
        ("unknown_split", {"split": "holdout"}),
        ("no_split", {"split": ""}),
    ]
    for row, (_, change) in zip(members, faults, strict=False):
        for key, value in change.items():
            setattr(row, key, value)
    members[11].number = 90  # a patient of its own
    members[12].text = report("", "Findings stand in.").encode()
    tree = mimic_tree(tmp_path / "raw", [*members, members[14]])
    summary = prepare(small_config(max_bad_share=0.5), tree, tmp_path / "out")
    bad = {(row.dicom, reason) for row, (reason, _) in zip(members, faults, strict=False) if " " not in reason}
    assert set(quarantine(tmp_path / "out", tree)) == bad | {(members[14].dicom, "duplicate_id")}
    assert sum(summary.bad.values()) == len(bad) + 1
    assert summary.not_selected == {"no usable section": 1, "too few words": 1, "view LATERAL": 1, "view empty": 1}
    assert summary.splits == {"train": 8, "validate": 4, "test": 4}
    assert everything(tmp_path / "out", "train")[members[12].dicom]["prompts"][0] == b"Findings stand in."


def test_too_many_bad_rows_stop_and_leave_the_list(tmp_path):
    members = rows()
    for row in members[:3]:
        row.write_image = False
    tree = mimic_tree(tmp_path / "raw", members)
    expected = r"3 of 20 selected rows are bad, 15\.0% \(missing_image 3\); data\.max_bad_share is 14\.0%; .*out.quaran"
    with pytest.raises(UserError, match=expected):
        prepare(small_config(max_bad_share=0.14), tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    listed = (tmp_path / "out.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [2, 3, 4]
    for row in members[:2]:  # made again is what had bad rows, when they are mended
        row.write_image = True
    mimic_tree(tmp_path / "mended", members)
    for image in (tmp_path / "mended").rglob("*.jpg"):
        shutil.copy(image, tree / image.relative_to(tmp_path / "mended"))
    assert sum(prepare(small_config(max_bad_share=0.14), tree, tmp_path / "out").splits.values()) == 19
    assert not (tmp_path / "out.quarantine.jsonl").exists()


def test_others_cannot_read_what_is_prepared_nor_the_list_of_bad_rows(tmp_path):
    members = rows()
    members[0].write_image = False
    tree, mode = mimic_tree(tmp_path / "raw", members), lambda name: stat.S_IMODE((tmp_path / name).stat().st_mode)
    with pytest.raises(UserError):
        prepare(small_config(max_bad_share=0.01), tree, tmp_path / "out")
    assert (mode(".out.partial"), mode("out.quarantine.jsonl")) == (0o700, 0o600)
    prepare(small_config(), tree, tmp_path / "out")
    assert (mode("out"), mode("out/quarantine.jsonl")) == (0o700, 0o600)


def test_nothing_left_stops(tmp_path):
    tree = mimic_tree(tmp_path / "raw", rows())
    with pytest.raises(UserError, match=r"no usable row; bad: none; not selected: view AP 10, view PA 10"):
        prepare(small_config(views=("LL",)), tree, tmp_path / "out")
    for path in (tree / "mimic-cxr").rglob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="no usable row; bad: missing_report 20"):
        prepare(small_config(), tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_selection_follows_the_config(tmp_path):
    members = rows()
    members[0].view = ""
    tree = mimic_tree(tmp_path / "raw", members)
    assert prepare(small_config(views=()), tree, tmp_path / "a").splits["train"] == 12
    assert prepare(small_config(views=("PA",)), tree, tmp_path / "b").splits["train"] == 5
    members[1].text = report("Six words are in this one.").encode()
    mimic_tree(tree, members)
    assert prepare(small_config(min_words=6), tree, tmp_path / "c").splits == {"train": 1, "validate": 0, "test": 0}
    prepare(small_config(sections=("findings",)), tree, tmp_path / "d")
    assert {record["prompts"][0] for record in open_split(tmp_path / "d", "train")} == {b"Lungs are clear."}


def test_empty_split_is_counted_and_said(tmp_path, capsys):
    tree = mimic_tree(tmp_path / "raw", rows(validate=0))
    summary = prepare(small_config(validate_share=0.0), tree, tmp_path / "out")
    assert summary.splits == {"train": 12, "validate": 0, "test": 4}
    assert "split validate is empty" in capsys.readouterr().out
    with pytest.raises(UserError, match="'validate'"):
        open_split(tmp_path / "out", "validate")


def test_split_whose_rows_are_all_bad_is_empty(tmp_path):
    members = rows()
    for row in members[12:16]:
        row.write_image = False
    summary = prepare(small_config(max_bad_share=0.3), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    assert summary.splits == {"train": 12, "validate": 0, "test": 4}


def test_patient_in_two_splits_stops(tmp_path):
    members = rows()
    members[1].split = "test"  # shares its patient with members[0]
    with pytest.raises(UserError, match="1 patients are in more than one split"):
        prepare(small_config(), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA", "patient": 7} for n in range(2)]
    lines[1]["split"] = "test"
    with pytest.raises(UserError, match="1 patients are in more than one split"):
        prepare(small_config(), image_folder(tmp_path / "folder", lines), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_that_are_missing_or_wrong_are_named(tmp_path):
    tree = mimic_tree(tmp_path / "raw", rows())
    table = tree / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-split.csv.gz"
    write_table(table, ["dicom", "study_id", "split"], [["a", "b", "train"]])
    with pytest.raises(UserError, match=r"split\.csv\.gz: no column dicom_id, subject_id; it has dicom, study_id"):
        prepare(small_config(), tree, tmp_path / "out")
    table.write_bytes(table.read_bytes()[:20])
    with pytest.raises(UserError, match=r"split\.csv\.gz: not a readable table"):
        prepare(small_config(), tree, tmp_path / "out")
    table.unlink()
    with pytest.raises(UserError, match=r"no mimic-cxr-2\.0\.0-split\.csv\.gz"):
        prepare(small_config(), tree, tmp_path / "out")
    with pytest.raises(UserError, match=r"not a source; .*mimic-cxr-2\.0\.0-metadata\.csv\.gz"):
        prepare(small_config(), tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        prepare(small_config(), tmp_path / "absent", tmp_path / "out")


def test_paths_out_of_the_tree_are_rejected(tmp_path):
    for path in ("../x.jpg", "a/../../x.jpg", "/etc/passwd", "", "a\0b", ".."):
        with pytest.raises(records.Rejected) as caught:
            records.joined_below(tmp_path, path)
        assert caught.value.reason == "path_outside_tree"
    assert records.joined_below(tmp_path, "a/../b/x.jpg") == tmp_path / "b/x.jpg"
    members = rows()
    members[3].split = members[2].split
    tree = mimic_tree(tmp_path / "raw", members)
    jpg = tree / "mimic-cxr-jpg/2.1.0"
    escape = "../" * 9 + "x"
    body = [[row.dicom, row.subject, row.study, row.view] for row in members]
    body[0][0] = escape
    write_table(jpg / "mimic-cxr-2.0.0-metadata.csv.gz", ["dicom_id", "subject_id", "study_id", "ViewPosition"], body)
    body = [[row.dicom, row.subject, row.study, row.split] for row in members]
    body[0][0] = escape
    write_table(jpg / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "subject_id", "study_id", "split"], body)
    prepare(small_config(), tree, tmp_path / "out")
    assert quarantine(tmp_path / "out", tree) == [(escape, "path_outside_tree")]


def test_second_run_is_recognised_and_other_settings_are_refused(tmp_path, capsys):
    tree = mimic_tree(tmp_path / "raw", rows())
    first = prepare(small_config(), tree, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare(small_config(max_bad_share=0.9), tree, tmp_path / "out") == first
    assert "already prepared" in capsys.readouterr().out
    for change in ({"size": 24}, {"views": ("PA",)}, {"sections": ("findings",)}, {"min_words": 3}):
        with pytest.raises(UserError, match="other settings"):
            prepare(small_config(**change), tree, tmp_path / "out")
    with pytest.raises(UserError, match="another source"):
        prepare(small_config(), mimic_tree(tmp_path / "other", rows(train=10)), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        prepare(small_config(), tree, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_same_source_gives_the_same_records_and_tokenizer(tmp_path):
    tree = mimic_tree(tmp_path / "raw", rows())
    for name in ("a", "b"):
        prepare(small_config(), tree, tmp_path / name)
    for split in ("train", "validate", "test"):
        one, two = (list(open_split(tmp_path / name, split)) for name in ("a", "b"))
        assert [record["id"] for record in one] == [record["id"] for record in two]
        assert [record["image"] for record in one] == [record["image"] for record in two]
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "a/tokenizer" / name).read_bytes() == (tmp_path / "b/tokenizer" / name).read_bytes()


def test_given_tokenizer_is_copied_and_a_train_split_is_not_needed(tmp_path):
    tree = mimic_tree(tmp_path / "raw", rows())
    first = prepare(small_config(), tree, tmp_path / "a")
    only_test = mimic_tree(tmp_path / "test", rows(train=0, validate=0))
    with pytest.raises(UserError, match=r"train split is empty.*data\.tokenizer"):
        prepare(small_config(), only_test, tmp_path / "b")
    second = prepare(small_config(tokenizer=str(tmp_path / "a/tokenizer")), only_test, tmp_path / "b")
    assert second.vocab_size == first.vocab_size
    for path in (tmp_path / "a/tokenizer").iterdir():
        assert (tmp_path / "b/tokenizer" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="absent: no tokenizer here"):
        prepare(small_config(tokenizer=str(tmp_path / "absent")), tree, tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "data.size is 0"),
        ({"sections": ()}, "data.sections is empty"),
        ({"sections": ("findings", "Impresion")}, "data.sections has 'Impresion': give some of impression, findings"),
        ({"max_bad_share": 2.0}, "share"),
    ],
)
def test_wrong_settings_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        prepare(small_config(**change), tmp_path, tmp_path / "out")


def test_reports_that_the_parser_names_are_read_by_the_table(tmp_path):
    members = rows()
    members[0].text = report("Not this.", "But this.").encode()
    members[1].text = b"FINAL REPORT\n no header; THE SPAN is here"
    table = tmp_path / "exceptions.csv"
    start = members[1].text.index(b"THE")
    table.write_text(
        f"study_id,section,start,end\ns{members[0].study},FINDINGS,,\n{members[1].study},,{start},{start + 8}\n"
    )
    prepare(small_config(report_exceptions=str(table)), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    train = everything(tmp_path / "out", "train")
    assert [train[row.dicom]["prompts"] for row in members[:2]] == [[b"But this."], [b"THE SPAN"]]
    sections = b"EXAM: Of the chest.\n\n RECOMMENDATION(S):  Come again.\n\n IMPRESSION:  Clear.\n"
    members[0].text = members[1].text = b"FINAL REPORT\n " + sections
    table.write_text(f"study_id,section\n{members[0].study},recommendations\n{members[1].study},examination\n")
    prepare(small_config(report_exceptions=str(table)), mimic_tree(tmp_path / "named", members), tmp_path / "by-name")
    train = everything(tmp_path / "by-name", "train")
    assert [train[row.dicom]["prompts"] for row in members[:2]] == [[b"Come again."], [b"Of the chest."]]
    table.write_text("study_id,section\n50000000,\n")
    with pytest.raises(UserError, match="exceptions.csv: line 2: give a section, or start and end"):
        prepare(small_config(report_exceptions=str(table)), tmp_path / "raw", tmp_path / "other")


def test_patients_are_split_by_hash(tmp_path):
    lines = [
        {"file_name": f"{n}.png", "text": "clear lungs", "view": "PA", "patient": n // 2, "split": "test"}
        for n in range(80)
    ]
    summary = prepare(small_config(split="hash"), image_folder(tmp_path / "raw", lines), tmp_path / "out")
    assert sum(summary.splits.values()) == 80
    assert summary.splits["train"] > 60
    assert all(count % 2 == 0 for count in summary.splits.values()), "a patient's two images are together"


def test_records_of_before_uncertain_labels_are_read(tmp_path, monkeypatch):
    whole = records.features(16, 1)
    older = type(whole)({name: feature for name, feature in whole.items() if name != "uncertain"})
    monkeypatch.setattr(shards, "features", lambda size, channels: older)
    made = records.make_record

    def make_older(*given):
        found = made(*given)
        del found.record["uncertain"]
        return found

    monkeypatch.setattr(shards, "make_record", make_older)
    members = rows()
    prepare(small_config(), mimic_tree(tmp_path / "raw", members), tmp_path / "out", workers=1)
    record = everything(tmp_path / "out", "train")[members[4].dicom]
    assert (record["labels"], record["uncertain"]) == ([b"Cardiomegaly"], [])


def test_labels_are_listed_with_their_places(tmp_path):
    prepare(small_config(), mimic_tree(tmp_path / "raw", rows()), tmp_path / "out")
    places = json.loads((tmp_path / "out" / "labels.json").read_text())
    for split in ("train", "validate", "test"):
        records = list(open_split(tmp_path / "out", split))
        for label, found in places[split].items():
            assert found == [n for n, r in enumerate(records) if label.encode() in (r["labels"] or [b""])]


def test_columns_more_and_releases_less_than_expected(tmp_path):
    tree = mimic_tree(tmp_path / "raw", rows())
    table = tree / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-metadata.csv.gz"
    head = ["Rows", "dicom_id", "study_id", "ViewPosition", "subject_id", "StudyDate", "Extra"]
    body = [["3056", row.dicom, row.study, row.view, row.subject, row.date, "x"] for row in rows()]
    write_table(table, head, body)
    assert sum(prepare(small_config(), tree, tmp_path / "out").splits.values()) == 20
    (tree / "mimic-cxr-jpg/2.1.0").rename(tree / "mimic-cxr-jpg/1.0.0")
    for name in ("metadata", "split"):
        old = tree / f"mimic-cxr-jpg/1.0.0/mimic-cxr-2.0.0-{name}.csv.gz"
        old.rename(old.with_name(old.name.replace("2.0.0", "1.0.0")))
    with pytest.raises(UserError, match=r"no mimic-cxr-2\.0\.0-metadata\.csv\.gz: fetch it from"):
        prepare(small_config(), tree, tmp_path / "other")


def test_neither_output_nor_summary_tells_reports_or_patients(tmp_path, capsys):
    members = rows()
    members[0].text = report(None).replace("FINAL", "SECRETWORD").encode()
    prepare(small_config(), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    told = capsys.readouterr()
    written = [(tmp_path / "out" / name).read_text() for name in ("summary.json", "README.md")]
    for text in (told.out, told.err, *written):
        assert "is clear" not in text
        assert "SECRETWORD" not in text
        assert not any(row.subject in text for row in members)
    assert "SECRETWORD" not in (tmp_path / "out/quarantine.jsonl").read_text()


def _shared(*parts: str) -> Path:
    here = os.environ.get("JAXCXR_REAL_CXR")
    shared = Path(here).parents[1] if here else Path(__file__).parents[3] / "shared"
    return shared.joinpath(*parts)


def test_real_radiographs_with_planted_faults(tmp_path):
    layout = _shared("tools", "mimic_layout.py")
    if not layout.is_file():
        pytest.skip(f"no {layout}: real radiographs are not part of this project")
    command = [sys.executable, str(layout), str(tmp_path / "raw"), "--limit", "60", "--faults"]
    subprocess.run(command, check=True, capture_output=True)
    summary = prepare(small_config(size=32, min_words=4), tmp_path / "raw", tmp_path / "out")
    assert summary.bad == {
        "missing_image": 1,
        "missing_report": 1,
        "unreadable_image": 1,
    }
    # The planted three-word impression, and a real one.
    assert summary.not_selected == {"no usable section": 1, "too few words": 2, "view LATERAL": 1, "view empty": 1}
    assert summary.splits == {"train": 39, "validate": 12, "test": 1}
    texts = [r["prompts"][0].decode() for split in summary.splits for r in open_split(tmp_path / "out", split)]
    assert any("38°C" in text for text in texts)
    assert any(len(text.split()) > 300 for text in texts)


def test_the_limit_of_reports_counts_bytes_of_a_file_and_characters_of_a_text(tmp_path):
    members, text = rows(), "é" * 30 + " clear"
    members[0].text = report(text).encode()
    limit = {"max_report_bytes": len(report(text)) + 20, "max_bad_share": 0.5}
    summary = prepare(small_config(**limit), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    assert summary.bad == {"report_too_long": 1}
    lines = [{"file_name": f"{n}.png", "text": text + n * "x", "view": "PA"} for n in range(4)]
    limit["max_report_bytes"] = len(text) + 2
    summary = prepare(small_config(**limit), image_folder(tmp_path / "folder", lines), tmp_path / "texts")
    assert summary.bad == {"report_too_long": 1}


def test_prompts_that_do_not_fit_are_counted(tmp_path):
    members = rows()
    for row, count in ((members[0], 75), (members[1], 76), (members[12], 200)):
        row.text = report(" ".join(["clear"] * count)).encode()
    summary = prepare(small_config(), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    assert summary.prompts_cut == {"train": 1, "validate": 1, "test": 0}
