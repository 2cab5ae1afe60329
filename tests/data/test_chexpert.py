import csv

import pytest
from PIL import Image
from trees import picture, small_config

from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError

HEAD = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Edema", "Pleural Effusion"]


def tree(root, train=8, valid=2):
    """Writes root/CheXpert-v1.0-small, named as published; returns root."""
    folder, number = root / "CheXpert-v1.0-small", 0
    for split, count in (("train", train), ("valid", valid)):
        body = []
        for patient in range(number, number + count):
            for view in ("frontal", "lateral"):
                path = f"{split}/patient{patient:05}/study1/view_{view}.jpg"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(patient)).save(folder / path)
                labels = ["1.0", "", ""] if patient % 2 else ["", "1.0", "-1.0" if patient % 4 else "1.0"]
                facing = ["Frontal", ("PA", "AP")[patient % 2]] if view == "frontal" else ["Lateral", ""]
                row = [f"CheXpert-v1.0-small/{path}", ("Male", "Female", "Unknown")[patient % 3], str(40 + patient)]
                body.append([*row, *facing, *labels])
        number += count
        write(folder / f"{split}.csv", body)
    return root


def write(path, body):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *body])


def test_labels_view_age_and_sex_become_prompts(tmp_path):
    config = small_config(prompts=("{age} year old {sex}, {view}. {labels}.",), max_bad_share=0.5)
    summary = prepare(config, tree(tmp_path / "raw"), tmp_path / "out")
    assert summary.splits == {"train": 6, "validate": 1, "test": 0}
    assert summary.not_selected == {"view LATERAL": 10, "no sex": 3}
    assert summary.bad == {}
    found = {r["id"].decode(): r["prompts"][0].decode() for r in open_split(tmp_path / "out", "train")}
    assert found["train/patient00000/study1/view_frontal.jpg"] == "40 year old male, PA. edema, pleural effusion."
    assert found["train/patient00001/study1/view_frontal.jpg"] == "41 year old female, AP. no finding."
    assert found["train/patient00006/study1/view_frontal.jpg"] == "46 year old male, PA. edema."
    unsure = {r["id"].decode(): r["uncertain"] for r in open_split(tmp_path / "out", "train")}
    assert unsure["train/patient00006/study1/view_frontal.jpg"] == [b"Pleural Effusion"]
    assert unsure["train/patient00000/study1/view_frontal.jpg"] == []
    assert "Stanford" in (tmp_path / "out" / "README.md").read_text()


def test_it_has_no_reports(tmp_path):
    with pytest.raises(UserError, match="asks for {report}, which .* does not give; it gives {age}, {labels}"):
        prepare(small_config(), tree(tmp_path / "raw"), tmp_path / "out")


def test_bad_rows_are_listed(tmp_path):
    root = tree(tmp_path / "raw")
    table = root / "CheXpert-v1.0-small" / "train.csv"
    rows = list(csv.reader(table.open()))[1:]
    rows[0][0] = "CheXpert-v1.0-small/train/../../outside.jpg"
    rows[2][0] = "view1.jpg"
    write(table, [*rows, rows[4]])
    summary = prepare(small_config(prompts=("{labels}, {view}",), max_bad_share=0.5), root, tmp_path / "out")
    assert summary.bad == {"duplicate_id": 1, "id_of_another_form": 2}


def test_a_patient_in_two_splits_stops(tmp_path):
    root = tree(tmp_path / "raw")
    folder = root / "CheXpert-v1.0-small"
    rows = list(csv.reader((folder / "train.csv").open()))[1:]
    rows[0][0] = rows[0][0].replace("train/", "valid/")
    write(folder / "valid.csv", rows[:1])
    with pytest.raises(UserError, match="1 patients are in more than one split"):
        prepare(small_config(prompts=("{labels}",)), root, tmp_path / "out")
