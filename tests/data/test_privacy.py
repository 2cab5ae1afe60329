"""What `prepare` writes and prints: of marked ids and texts in any column, nothing where it may not be.

docs/data.md says what each file may hold. Records, tokenizer and contact sheet are made of reports.
"""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
import test_chexpert
import test_openi
from test_prompts import hospital
from trees import image_folder, mimic_tree, report, rows

from jaxcxr.__main__ import main
from tests.training.runs import ROOT

TEXT = "Markedtext: Mrs. Markedname has a large effusion."
PATIENT = "18765432"
MARKS = ("markedtext", "markedname", PATIENT)
MAY_HOLD_TEXT = ("records/", "tokenizer/", "contact_sheet.png")


def told(source: Path, out: Path, capfd, *settings: str, code: int | None = 0) -> dict[str, str]:
    """Runs `prepare`; returns what may not hold ids or texts: its files, by name, stdout and stderr."""
    given = ("size=16", "tokenizer_vocab=600", "views=()", "max_bad_share=1.0", *settings)
    options = [f"--config.data.{each}" for each in given]
    places = ["--config", str(ROOT / "configs/base.py"), "--source", str(source), "--out", str(out)]
    ended = main(["prepare", *places, "--workers", "1", *options])
    captured = capfd.readouterr()
    assert code in (None, ended), captured.err
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    files |= {path.name: path for path in out.parent.glob(f"{out.name}.*")}
    written = {name: path.read_bytes().decode("latin-1") for name, path in files.items()}
    kept = {name: text for name, text in written.items() if not name.startswith(MAY_HOLD_TEXT)}
    return {**kept, "stdout": captured.out, "stderr": captured.err}


def assert_nothing_of(marks, found: dict[str, str]) -> None:
    for name, text in found.items():
        for mark in marks:
            assert mark.lower() not in text.lower(), f"{mark} in {name}"


def read(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        return list(csv.reader(file))


def write(path: Path, body: list[list[str]]) -> None:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        csv.writer(file).writerows(body)


def planted(path: Path, lengths: bool = True) -> int:
    """Puts the text into each column of a row of its own, then shifts rows both ways; returns how many rows differ."""
    head, *body = read(path)
    for column in range(len(head)):
        body[column][column] = TEXT
    count = len(head)
    if lengths:
        body[count].insert(0, TEXT)
        body[count + 1].append(TEXT)
        body[count + 2].pop()
        body[count + 3] = [PATIENT, *body[count + 3][1:-1]]
        count += 4
    write(path, [head, *body])
    return count


def ids_of(members) -> set[str]:
    return {each for row in members for each in (row.subject, row.study, row.dicom)}


@pytest.fixture
def members():
    found = rows(train=30, validate=6, test=6)
    found[20].text = report(TEXT, TEXT).encode()
    found[21].text = f"{TEXT} without a section".encode()
    found[22].write_report, found[23].write_image = False, False
    found[24].image = TEXT.encode()
    return found


@pytest.mark.parametrize("share", ["max_bad_share=1.0", "max_bad_share=0.0"])
def test_mimic_with_text_in_every_column_of_its_metadata(tmp_path, members, capfd, share):
    tree = mimic_tree(tmp_path / "raw", members)
    planted(tree / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-metadata.csv.gz")
    found = told(tree, tmp_path / "out", capfd, share, code=None)
    assert_nothing_of([*MARKS, *ids_of(members)], found)
    name = "quarantine.jsonl" if share.endswith("1.0") else "out.quarantine.jsonl"
    listed = [json.loads(line) for line in found[name].splitlines()]
    reasons = {entry["row"]: entry["reason"] for entry in listed if "metadata" in entry["table"]}
    # Of a date, of which nothing is asked here, the text is not noticed.
    assert [reasons.get(row, "") for row in range(2, 11)] == [
        *("id_of_another_form", "id_of_another_form", "id_of_another_form", "view_is_no_name", ""),
        *4 * ["row_of_another_length"],
    ]
    assert reasons[24] == "missing_report"
    assert {reasons[25], reasons[26]} == {"missing_image", "unreadable_image"}


@pytest.mark.parametrize("name", ["split", "chexpert", "patients", "admissions"])
@pytest.mark.parametrize("lengths", [False, True])
def test_mimic_with_text_in_every_column_of_another_table(tmp_path, members, capfd, name, lengths):
    tree = hospital(mimic_tree(tmp_path / "raw", members), members)
    (table,) = tree.rglob(f"*{name}.csv.gz")
    if name == "admissions":
        write(table, [*read(table), *8 * [read(table)[-1]]])
    count = planted(table, lengths)
    settings = ("prompts=('{impression} {sex}','{report}')",)
    found = told(tree, tmp_path / "out", capfd, *settings, code=2 if lengths else 0)
    assert_nothing_of([*MARKS, *ids_of(members)], found)
    if lengths:
        assert re.search(rf"{name}\.csv\.gz: line {count - 2} has more or fewer fields", found["stderr"])


def test_mimic_with_text_in_the_users_own_tables(tmp_path, members, capfd):
    tree = mimic_tree(tmp_path / "raw", members)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "patients.txt").write_text(f"{TEXT}\n{members[0].subject}\n{PATIENT}\n")
    (lists / "exceptions.csv").write_text(f"study_id,section\n{members[0].study},{TEXT}\n{PATIENT},\n")
    (lists / "texts.csv").write_text(f"dicom_id,text\n{members[0].dicom},{TEXT}\n{TEXT},{TEXT},{TEXT}\n")
    (lists / "texts.json").write_text(json.dumps([{"image": TEXT, "generate_method": 3, PATIENT: TEXT}]))
    (lists / "headless.csv").write_text(f"{members[0].dicom},{TEXT}\n")
    for number, (key, file, code) in enumerate(
        [
            ("patients_in", "patients.txt", 0),
            ("patients_out", "patients.txt", 0),
            ("report_exceptions", "exceptions.csv", 2),
            ("report_tables", "texts.csv", 2),
            ("report_tables", "texts.json", 2),
            ("report_tables", "headless.csv", 2),
        ]
    ):
        value = f"['{lists / file}']" if key == "report_tables" else lists / file
        found = told(tree, tmp_path / f"out{number}", capfd, f"{key}={value}", code=code)
        assert_nothing_of([*MARKS, *ids_of(members)], found)


LINES = [
    {"file_name": f"{n}.png", "text": f"clear lungs {n}", "patient": f"{n // 2}", "study": f"s{n}", "view": "PA"}
    | {"labels": ["Edema"], "split": "train", "side": "left"}
    for n in range(30)
]


def test_an_image_folder_with_text_in_every_field(tmp_path, capfd):
    lines = [dict(line) for line in LINES]
    for number, key in enumerate(sorted(set(lines[0]) - {"file_name", "text", "side"})):
        lines[number][key] = [TEXT] if key == "labels" else TEXT
    lines[10] = {TEXT: 1, PATIENT: 2, **lines[10]}
    lines[11]["patient"] = {"name": TEXT}
    source = image_folder(tmp_path / "raw", lines)
    with (source / "metadata.jsonl").open("a") as file:
        file.write(f'{{"file_name": "{TEXT}", "text": "{PATIENT}"}}\n{TEXT}\n["{TEXT}"]\n{{"{TEXT}": "{TEXT}"}}\n')
    found = told(source, tmp_path / "out", capfd, "labels=('Mass','Edema')")
    assert_nothing_of(MARKS, found)
    listed = {row["row"]: row["reason"] for row in map(json.loads, found["quarantine.jsonl"].splitlines())}
    assert listed == {
        **{1: "label_is_no_name", 2: "id_of_another_form", 3: "unknown_split", 4: "id_of_another_form"},
        **{5: "view_is_no_name", 12: "value_of_another_type", 32: "row_not_json", 33: "row_not_json"},
        34: "row_without_file_name",
    }
    found = told(source, tmp_path / "other", capfd, "prompts=('{absent}',)", code=2)
    assert "{side}" in found["stderr"]
    assert_nothing_of(MARKS, found)


def test_an_image_folder_with_a_shifted_csv(tmp_path, capfd):
    source = image_folder(tmp_path / "raw", [{"file_name": f"{n}.png"} for n in range(30)])
    (source / "metadata.jsonl").unlink()
    head = ["file_name", "text", "patient", "study", "view", "labels", "split"]
    body = [[f"{n}.png", "clear lungs", f"{n}", f"s{n}", "PA", "Edema", "train"] for n in range(30)]
    write(source / "metadata.csv", [head, *body])
    planted(source / "metadata.csv")
    found = told(source, tmp_path / "out", capfd)
    assert_nothing_of(MARKS, found)
    listed = [json.loads(line)["row"] for line in found["quarantine.jsonl"].splitlines()]
    assert listed == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12], "the text in the column of texts is where it belongs"
    write(source / "metadata.csv", [[TEXT, *head[1:]], *body])
    assert_nothing_of(MARKS, told(source, tmp_path / "other", capfd, code=2))


def test_chexpert_with_text_in_every_column(tmp_path, capfd):
    root = test_chexpert.tree(tmp_path / "raw", train=16)
    planted(root / "CheXpert-v1.0-small/train.csv")
    found = told(root, tmp_path / "out", capfd, "prompts=('{labels} {view}',)")
    assert_nothing_of([*MARKS, "patient000"], found)


def test_openi_with_text_in_every_place(tmp_path, capfd):
    changes = {
        2: test_openi.report(2).replace('uId id="CXR2"', f'uId id="{TEXT}"'),
        3: test_openi.report(3).replace(test_openi.ids(3)[0], TEXT),
        4: test_openi.report(4, majors=(TEXT,)),
        5: test_openi.report(5, findings=TEXT, impression=TEXT)[:-30],
        6: test_openi.report(6).replace("Label", TEXT[:10]),
    }
    raw = test_openi.tree(tmp_path / "raw", changes=changes)
    planted(raw / "indiana_projections.csv", lengths=False)
    found = told(raw, tmp_path / "out", capfd, "split=hash")
    assert_nothing_of([*MARKS, "CXR1", "CXR2", "IM-0"], found)
    planted(raw / "indiana_projections.csv")
    assert_nothing_of([*MARKS, "CXR1", "CXR2", "IM-0"], told(raw, tmp_path / "other", capfd, "split=hash", code=2))
