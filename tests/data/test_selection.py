import json

import pytest
from trees import LABELS, image_folder, mimic_tree, report, rows, small_config, write_table

from jaxcxr import config as configs
from jaxcxr.data import tokens
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError
from tests.training.runs import ROOT


@pytest.fixture
def tree(tmp_path):
    return mimic_tree(tmp_path / "raw", rows())


def ids(out, split="train"):
    return {record["id"].decode() for record in open_split(out, split)}


def test_lists_of_patients(tree, tmp_path):
    members, file = rows(), tmp_path / "patients.txt"
    file.write_text(f"{members[0].subject}\n{members[4].subject}\n")
    only = prepare(small_config(patients_in=str(file)), tree, tmp_path / "only")
    assert ids(tmp_path / "only") == {members[n].dicom for n in (0, 1, 4, 5)}
    assert only.not_selected == {"patient not listed": 16}
    without = prepare(small_config(patients_out=str(file)), tree, tmp_path / "without")
    assert without.splits["train"] == 8
    assert without.not_selected == {"patient listed out": 4}
    file.write_text(f"{members[0].subject}\n")
    with pytest.raises(UserError, match="only: holds data prepared with other settings"):
        prepare(small_config(patients_in=str(file)), tree, tmp_path / "only")
    with pytest.raises(UserError, match="absent.txt: no such file"):
        prepare(small_config(patients_in=str(tmp_path / "absent.txt")), tree, tmp_path / "none")


def test_lists_and_labels_that_match_nothing_are_told(tree, tmp_path, capsys):
    members, file = rows(), tmp_path / "patients.txt"
    file.write_text(f"p{members[0].subject}\np{members[4].subject}\n")
    for key in ("patients_in", "patients_out"):
        with pytest.raises(UserError, match="none of its 2 patients is in the tables: write ids as they do"):
            prepare(small_config(**{key: str(file)}), tree, tmp_path / "none")
    file.write_bytes(f"\ufeff{members[0].subject}\n123\n".encode())  # as Windows writes UTF-8
    config = small_config(patients_out=str(file), labels=(LABELS[0], "Cardiomegally"))
    prepare(config, tree, tmp_path / "out")
    assert not ids(tmp_path / "out") & {members[0].dicom, members[1].dicom}
    said = capsys.readouterr().err
    assert "1 of its 2 patients are not in the tables" in said
    assert "no image has 'Cardiomegally'" in said


def test_an_image_in_two_splits_stops(tree, tmp_path):
    table = tree / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-split.csv.gz"
    body = [[row.dicom, row.subject, row.study, row.split] for row in rows()]
    body.append([*body[0][:3], "test"])
    write_table(table, ["dicom_id", "subject_id", "study_id", "split"], body)
    with pytest.raises(UserError, match=r"split\.csv\.gz: an image is in more than one split"):
        prepare(small_config(), tree, tmp_path / "out")


def test_labels_of_each_table(tree, tmp_path):
    members = rows()
    table = tree / "mimic-cxr-jpg/2.1.0" / "mimic-cxr-2.0.0-negbio.csv.gz"
    body = [[row.subject, row.study, "1.0" if row.number < 4 else "-1.0"] for row in members]
    write_table(table, ["subject_id", "study_id", "Edema"], body)
    write_table(
        table.with_name("mimic-cxr-2.1.0-test-set-labeled.csv.gz"),
        ["study_id", "Airspace Opacity"],
        [[row.study, "1.0"] for row in members[-2:]],
    )
    summary = prepare(small_config(labels=("Pneumothorax", "Cardiomegaly")), tree, tmp_path / "chexpert")
    assert summary.labels["train"] == {LABELS[0]: 3, LABELS[2]: 3}
    assert summary.not_selected == {"no label asked for": 10}
    summary = prepare(small_config(label_table="negbio", labels=("Edema",)), tree, tmp_path / "negbio")
    assert summary.splits == {"train": 4, "validate": 0, "test": 0}
    assert prepare(small_config(label_table="test"), tree, tmp_path / "t").labels["test"] == {"Lung Opacity": 2}
    table.unlink()
    with pytest.raises(UserError, match="no mimic-cxr-2.0.0-negbio.csv.gz, which data.label_table='negbio' asks for"):
        prepare(small_config(label_table="negbio"), tree, tmp_path / "none")


def test_one_image_of_a_study(tmp_path):
    lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA", "study": n // 3} for n in range(24)]
    source = image_folder(tmp_path / "raw", lines)
    summary = prepare(small_config(one_per_study=True, validate_share=0.0), source, tmp_path / "out")
    assert ids(tmp_path / "out") == {f"{n}.png" for n in range(0, 24, 3)}
    assert summary.not_selected == {"another image of its study": 16}


def test_patients_p19_are_the_test_split(tmp_path):
    members = rows()
    for row in members[-6:]:
        row.number += 18_000_000  # subjects 19…
    summary = prepare(small_config(split="p19"), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    assert summary.splits == {"train": 10, "validate": 4, "test": 6}
    source = image_folder(tmp_path / "folder", [{"file_name": "0.png", "text": "clear lungs", "view": "PA"}])
    with pytest.raises(UserError, match="data.split is 'p19': may be official or hash for ImageFolder"):
        prepare(small_config(split="p19"), source, tmp_path / "none")


def test_reports_of_a_table(tree, tmp_path):
    members, table = rows(), tmp_path / "texts.csv"
    body = [f"{members[0].dicom},,Of the ___ image.", f",s{members[0].study},Of the study."]
    body += [f",{row.study},Text {row.number} of it." for row in members[1:] if row.number != 3]
    table.write_text("\n".join(["dicom_id,study_id,text", *body, ""]))
    for path in (tree / "mimic-cxr").rglob("*.txt"):
        path.unlink()
    summary = prepare(small_config(report_tables=(str(table),)), tree, tmp_path / "out")
    assert (summary.bad, summary.not_selected) == ({}, {"no report in table": 1})
    found = {record["id"].decode(): list(record["prompts"]) for record in open_split(tmp_path / "out", "train")}
    assert found[members[0].dicom] == [b"Of the image."]
    assert found[members[1].dicom] == [b"Text 1 of it."]
    assert members[3].dicom not in found
    table.write_text(table.read_text().replace("Text 1", "Word 1"))
    with pytest.raises(UserError, match="prepared with other settings"):
        prepare(small_config(report_tables=(str(table),)), tree, tmp_path / "out")
    with pytest.raises(UserError, match="asks for {findings}, which .* does not give; it gives {labels}, {report}"):
        prepare(small_config(report_tables=(str(table),), prompts=("{findings}",)), tree, tmp_path / "none")


def llava_rad(row, text, method="gpt4"):
    """An entry of LLaVA-Rad's annotations."""
    return {
        "id": f"{row.subject}_{row.study}",
        "image": f"mimic/p{row.subject[:2]}/p{row.subject}/s{row.study}/{row.dicom}.jpg",
        "generate_method": method,
        "view": row.view,
        "chexpert_labels": {"Edema": float("nan")},
        "conversations": [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": text}],
    }


def test_the_selection_of_chexgenbench(tree, tmp_path):
    members = rows()
    train = [llava_rad(row, f"Ruled {row.number} text.", "rule-based") for row in members[:12]]
    train += [llava_rad(row, f"Findings {row.number} told.") for row in members[2:11]]
    train += [llava_rad(members[0], None), llava_rad(members[1], float("nan"))]
    names = []
    for split, entries in (("train", train), ("test", [llava_rad(row, "In the test.") for row in members[16:]])):
        names.append(str(tmp_path / f"chat_{split}.json"))
        (tmp_path / f"chat_{split}.json").write_text(json.dumps(entries))
    config = configs.load(ROOT / "configs/data/chexgenbench.py", [f"--config.data.report_tables={names}"]).data
    config.update(size=16, tokenizer_vocab=600)
    summary = prepare(config, tree, tmp_path / "out")
    assert summary.splits == {"train": 12, "validate": 0, "test": 4}
    assert (summary.bad, summary.not_selected) == ({}, {"no report in table": 4})
    found = {r["id"].decode(): r["prompts"][0].decode() for r in open_split(tmp_path / "out", "train")}
    assert [found[members[n].dicom] for n in (0, 1, 5, 11)] == [
        "Ruled 0 text.",
        "Ruled 1 text.",
        "Findings 5 told.",
        "Ruled 11 text.",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "study_id,report\n1,x\n", "no column text; it has none of these in its first line"),
        ("a.csv", "50000000,Clear lungs in Smith\n", "no column text; it has none of these in its first line"),
        ("a.csv", "id,text\n1,x\n", "a row has neither dicom_id nor study_id"),
        ("a.json", '{"a": 1}', "Expected `array`, got `object`; these are not LLaVA-Rad's annotations"),
        ("a.json", '[{"image": "a.jpg"}]', "missing required field `generate_method`, .*not LLaVA-Rad's"),
        ("a.json", "[{", "line 1 column 3 .*these are not LLaVA-Rad's annotations"),
        (".", "", "no such file; data.patients_in"),
    ],
)
def test_another_table_of_reports_is_named(tree, tmp_path, name, text, message):
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        prepare(small_config(report_tables=(str(tmp_path / name),)), tree, tmp_path / "out")
    assert "Clear" not in str(error.value)


def test_length_in_tokens_of_the_tokenizer_given(tmp_path):
    members = rows()
    members[0].text = report("Clear lungs.").encode()
    members[1].text = report("Clear lungs " * 60).encode()
    tokens.train(["Clear lungs. Image number is clear."] * 3, 600, tmp_path / "tokenizer")
    tokenizer = tokens.load(tmp_path / "tokenizer")
    assert tokens.count(tokenizer, "clear lungs") == 4
    tree = mimic_tree(tmp_path / "raw", members)
    config = small_config(tokens=(6, 77), tokenizer=str(tmp_path / "tokenizer"))
    summary = prepare(config, tree, tmp_path / "out")
    assert summary.not_selected == {"too few tokens": 1, "too many tokens": 1}
    assert ids(tmp_path / "out") == {row.dicom for row in members[2:12]}
    with pytest.raises(UserError, match="data.tokens counts tokens of data.tokenizer, which is empty"):
        prepare(small_config(tokens=(7, 77)), tree, tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"), [({"split": "p18"}, "official or p19"), ({"label_table": "x"}, "negbio")]
)
def test_unknown_choices_are_named(tree, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        prepare(small_config(**change), tree, tmp_path / "out")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"1\n" + 513 * b"2", "an id in it is longer than 512 characters or has control characters; give a text file"),
        (b"1\n2\0", "has control characters; give a text file with one id a line"),
        ("Zoë".encode("latin-1"), "it is not UTF-8; give a text file with one id a line"),
    ],
)
def test_a_list_that_is_none_of_patients_says_what_is_wrong_with_it(tmp_path, written, message):
    (tmp_path / "list").write_bytes(written)
    tree = mimic_tree(tmp_path / "raw", rows())
    with pytest.raises(UserError, match=rf"list: not a list of patients: .*{message}"):
        prepare(small_config(patients_in=str(tmp_path / "list")), tree, tmp_path / "out")
