"""Tables, metadata and patient lists of raw data, mutated."""

import json

import pytest
from hypothesis import given, settings

from jaxcxr.data import reports
from jaxcxr.data.folder import ImageFolder
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.mimic_iv import Patients
from jaxcxr.data.selection import Selection
from jaxcxr.data.settings import Settings, defaults
from jaxcxr.data.tables import read_rows, read_table
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

CSV = b'file_name,text,labels,patient\n0.png,"Clear, both.",Edema|Mass,1\n1.png,Small effusion.,,2\n'
ROWS = [
    {"file_name": "0.png", "text": "Clear.", "labels": ["Edema"], "patient": 1, "view": "PA", "side": "left"},
    {"file_name": "a/1.png", "text": None, "study": "s1", "split": "validation"},
]
LLAVA_RAD = [
    {"image": "mimic/p10/a-b.jpg", "generate_method": "gpt4", "conversations": [{"value": "x"}, {"value": "Clear."}]},
    {"image": "mimic/p10/c-d.jpg", "generate_method": "rule", "conversations": [{"value": "x"}, {"value": None}]},
]


def configured(**changes):
    config = defaults()
    config.update(changes)
    return Settings.from_config(config)


def listed(folder):
    ledger = Ledger()
    found = ImageFolder(folder, configured(views=(), prompts=("{report}",))).candidates(ledger)
    for candidate in found:
        assert len(candidate.id) <= 512
        assert len(candidate.patient) <= 512
        assert all(len(line.splitlines()) == 1 for line in (candidate.id, candidate.patient, candidate.study))
        assert len(candidate.view) < 50
        assert all(len(label) <= 64 for label in candidate.labels)
        json.dumps(candidate.known).encode()
    return found


@given(byte_variants(CSV))
def test_a_mutated_table_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.csv").write_bytes(data)
    one_line_or_fine(lambda: list(read_rows(tmp_path / "x.csv", ("file_name", "text"))))
    one_line_or_fine(lambda: list(read_table(tmp_path / "x.csv", ("file_name", "text"))))


@given(byte_variants(CSV))
def test_a_mutated_metadata_csv_is_listed_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "metadata.csv").write_bytes(data)
    one_line_or_fine(listed, tmp_path)


@given(json_variants(ROWS))
def test_a_mutated_metadata_jsonl_is_listed_or_refused_in_one_line(tmp_path, rows):
    lines = rows if isinstance(rows, list) else [rows]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], *lines]))
    one_line_or_fine(listed, tmp_path)


@given(byte_variants("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
def test_mutated_bytes_of_metadata_jsonl_are_listed_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "metadata.jsonl").write_bytes(data)
    one_line_or_fine(listed, tmp_path)


@given(json_variants(LLAVA_RAD))
def test_mutated_annotations_are_read_or_refused_in_one_line(tmp_path, value):
    (tmp_path / "x.json").write_text(json.dumps(value))
    found = one_line_or_fine(reports.Texts.read, [str(tmp_path / "x.json")])
    if isinstance(found, reports.Texts):
        found.of("a-b", "1").encode()


@given(byte_variants(json.dumps(LLAVA_RAD).encode()))
def test_mutated_bytes_of_annotations_are_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    one_line_or_fine(reports.Texts.read, [str(tmp_path / "x.json")])


@given(byte_variants(b"study_id,section,start,end\ns1,findings,,\n2,,5,90\n"))
def test_mutated_exceptions_are_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.csv").write_bytes(data)
    found = one_line_or_fine(reports.Exceptions.read, str(tmp_path / "x.csv"))
    if isinstance(found, reports.Exceptions):
        found.section("s2", "FINAL REPORT\n FINDINGS: Clear.\n", "")


@given(byte_variants(b"subject_id,gender,anchor_age,anchor_year\n10000000,F,50,2175\n10000001,M,60,2180\n"))
def test_a_mutated_table_of_the_hospital_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "patients.csv").write_bytes(data)
    found = one_line_or_fine(Patients.read, {"patients": tmp_path / "patients.csv"})
    if isinstance(found, Patients):
        found.at("10000000", "21770101")


@settings(max_examples=50)
@given(byte_variants("\ufeff10000000\n10000001\n".encode()))
def test_a_mutated_list_of_patients_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.txt").write_bytes(data)
    one_line_or_fine(Selection, configured(patients_in=str(tmp_path / "x.txt")))


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "1" * 10**5, '"' + "x" * 10**5])
def test_deep_and_long_json_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert not isinstance(one_line_or_fine(reports.Texts.read, [str(tmp_path / "x.json")]), reports.Texts)
    (tmp_path / "metadata.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + text + "\n")
    assert len(one_line_or_fine(listed, tmp_path)) == 1
