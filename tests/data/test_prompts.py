import numpy as np
import pytest
from trees import image_folder, mimic_tree, report, rows, small_config, write_table

from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.mimic_iv import Patients
from jaxcxr.data.prepare import prepare
from jaxcxr.data.prompts import fill
from jaxcxr.errors import UserError

DESCRIBED = "{age} year old {sex}. {impression}"


def hospital(root, members):
    """MIMIC-IV's tables of these patients: odd subjects are women of 50 in 2175, even ones men of 60."""
    people = sorted({row.subject for row in members})
    hosp = root / "mimiciv" / "3.1" / "hosp"
    write_table(
        hosp / "patients.csv.gz",
        ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"],
        [[who, "MF"[int(who) % 2], str(60 - 10 * (int(who) % 2)), "2175", "2011 - 2013", ""] for who in people],
    )
    races = ["WHITE - RUSSIAN", "UNKNOWN", "UNKNOWN", "BLACK/AFRICAN AMERICAN", "WHITE"]
    write_table(
        hosp / "admissions.csv.gz",
        ["subject_id", "hadm_id", "admittime", "race"],
        [[people[0], str(n), "2175-01-01 00:00:00", race] for n, race in enumerate(races)],
    )
    return root


def prompts(out, split="train"):
    return {r["id"].decode(): [p.decode() for p in r["prompts"]] for r in open_split(out, split)}


def test_templates_are_filled_where_all_their_fields_are_known():
    values = {"report": "Clear.", "age": "61", "sex": ""}
    assert fill(("{report}", "{age} years. {report}"), values) == (["Clear.", "61 years. Clear."], "")
    assert fill(("{sex}, {age}", "{report}"), values) == (["Clear."], "sex")
    assert fill(("{sex}",), values) == ([], "sex")


def test_age_at_the_study_sex_and_race_of_mimic_iv(tmp_path):
    members = rows()
    members[2].date = "2190"  # not a date
    tree = hospital(mimic_tree(tmp_path / "raw", members), members)
    summary = prepare(small_config(prompts=(DESCRIBED,)), tree, tmp_path / "out")
    assert (summary.bad, summary.not_selected) == ({}, {"no age": 1})
    found = prompts(tmp_path / "out")
    assert found[members[0].dicom] == ["65 year old male. Image number 0 is clear."]
    assert found[members[3].dicom] == ["55 year old female. Image number 3 is clear."]
    hosp = tree / "mimiciv/3.1/hosp"
    people = Patients.read({name: hosp / f"{name}.csv.gz" for name in ("patients", "admissions")})
    assert people is not None
    assert people.at(members[0].subject, "21750101") == {"age": "60", "sex": "male", "race": "white"}
    assert people.at(members[2].subject, "21750101")["race"] == ""
    assert people.at("1", "21750101") == {"age": "", "sex": "", "race": ""}


def test_what_the_tables_of_the_hospital_lack_stops_before_any_work(tmp_path):
    members = rows()
    tree = hospital(mimic_tree(tmp_path / "raw", members), members)
    (tree / "mimiciv/3.1/hosp/admissions.csv.gz").unlink()
    with pytest.raises(UserError, match="asks for {race}, which .* does not give"):
        prepare(small_config(prompts=("{race}. {impression}", "{impression}")), tree, tmp_path / "out")
    prepare(small_config(prompts=("{sex}. {impression}",)), tree, tmp_path / "out")
    assert prompts(tmp_path / "out")[members[0].dicom] == ["male. Image number 0 is clear."]
    body = [[row.dicom, row.subject, row.study, row.view] for row in members]
    table = tree / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-metadata.csv.gz"
    write_table(table, ["dicom_id", "subject_id", "study_id", "ViewPosition"], body)
    with pytest.raises(UserError, match="asks for {age}, which .* does not give"):
        prepare(small_config(prompts=("{age}. {impression}",)), tree, tmp_path / "undated")


def test_several_templates_are_several_prompts_of_one_image(tmp_path):
    members = rows()
    members[3].text = report("Only this.").encode()
    templates = ("{impression}", "{findings}", "{view} view: {labels}")
    prepare(small_config(prompts=templates), mimic_tree(tmp_path / "raw", members), tmp_path / "out")
    found = prompts(tmp_path / "out")
    assert found[members[0].dicom] == ["Image number 0 is clear.", "Lungs are clear.", "PA view: cardiomegaly"]
    assert found[members[3].dicom] == ["Only this.", "AP view: no finding"]

    tokenizer = tokens.load(tmp_path / "out" / "tokenizer")
    source = open_split(tmp_path / "out", "train")

    def texts(seed, rows=None):
        batches = Batches(source, tokenizer=tokenizer, seed=seed, batch_size=12, rows=rows)
        ids = np.concatenate([batches.batch(step)["input_ids"] for step in range(8)])
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    whole = texts(0)
    assert sum(text.startswith("lungs") for text in whole) in range(16, 48), "about a third of 96 draws"
    assert whole == texts(0) != texts(1)
    halves = [np.reshape(texts(0, rows), (8, 6)) for rows in (range(6), range(6, 12))]
    assert np.concatenate(halves, axis=1).reshape(-1).tolist() == whole


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ((DESCRIBED,), "asks for {age}, which .* does not give; it gives {findings}, {impression}"),
        (("{report",), "data.prompts: '{report': expected '}'"),
        (("clear",), "give fields such as {report}"),
        (("{report!r}",), "plain names"),
        (("{report.size}",), "plain names"),
        ((), "data.prompts is empty"),
    ],
)
def test_a_template_that_cannot_be_filled_stops_before_any_work(tmp_path, templates, message):
    with pytest.raises(UserError, match=message):
        prepare(small_config(prompts=templates), mimic_tree(tmp_path / "raw", rows()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_of_an_image_folder_are_fields(tmp_path):
    lines = [{"file_name": f"{n}.png", "text": "Clear lungs.", "view": "PA", "age": 40 + n} for n in range(16)]
    lines[3].pop("age")
    source = image_folder(tmp_path / "raw", lines)
    summary = prepare(small_config(prompts=("{age} years. {report}",)), source, tmp_path / "out")
    assert prompts(tmp_path / "out")["5.png"] == ["45 years. Clear lungs."]
    assert (summary.bad, summary.not_selected) == ({}, {"no age": 1})
    with pytest.raises(UserError, match="asks for {sex}"):
        prepare(small_config(prompts=("{sex}",)), source, tmp_path / "other")
