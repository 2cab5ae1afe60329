import csv
import itertools
import json

import pytest
from PIL import Image
from trees import picture, small_config

from jaxcxr.data import images
from jaxcxr.data.loader import open_split
from jaxcxr.data.openi import image_key, read_report
from jaxcxr.data.prepare import prepare
from jaxcxr.data.records import Rejected
from jaxcxr.errors import UserError

HASHED = {"split": "hash", "views": ()}
BOMB = '<!DOCTYPE r [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>'


def ids(number):
    """A frontal and a lateral image; the first report's ids say the number twice, as in the archive."""
    twice = "1_" if number == 1 else ""
    return [f"CXR{number}_{twice}IM-{number:04}-{view}" for view in ("1001", "2001")]


def report(number, findings="Heart XXXX normal.", impression="Clear XXXX, number {}.", majors=("normal",), head=""):
    sections = {"COMPARISON": "None.", "INDICATION": None, "FINDINGS": findings, "IMPRESSION": impression}
    texts = "".join(
        f'<AbstractText Label="{name}">{text.format(number)}</AbstractText>'
        if text
        else f'<AbstractText Label="{name}"/>'
        for name, text in sections.items()
    )
    parents = "".join(f'<parentImage id="{name}"><panel type="single"/></parentImage>' for name in ids(number))
    mesh = "".join(f"<major>{major}</major>" for major in majors)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>{head}\n<eCitation><uId id="CXR{number}"/><MedlineCitation><Article>'
        f"<Abstract>{texts}</Abstract></Article></MedlineCitation><MeSH>{mesh}<automatic>heart</automatic></MeSH>"
        f"{parents}</eCitation>"
    )


def write_views(path, rows, head=("uid", "filename", "projection")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def tree(root, count=30, changes=None, folder="NLMCXR_png", kaggle=False, views=True):
    """Reports 1 to `count` of two images each, those in `changes` with the given text; returns root."""
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    table = []
    for number in range(1, count + 1):
        text = (changes or {}).get(number, report(number))
        data = text if isinstance(text, bytes) else text.encode()
        (root / f"ecgen-radiology/{number}.xml").write_bytes(data)
        for name, view in zip(ids(number), ("Frontal", "Lateral"), strict=True):
            at_kaggle = f"{number}_{name[name.index('IM') :]}.dcm.png"
            Image.fromarray(picture(number)).save(root / folder / (at_kaggle if kaggle else f"{name}.png"))
            table.append([number, at_kaggle, view])
    if views:
        write_views(root / "indiana_projections.csv", table)
    return root


def records(out):
    found = {}
    for split in ("train", "validate", "test"):
        if json.loads((out / "summary.json").read_text())["splits"][split]:
            found |= {record["id"].decode(): record for record in open_split(out, split)}
    return found


def test_reports_become_records(tmp_path):
    changes = {
        2: report(2, majors=("Cardiomegaly/mild", "Pulmonary Atelectasis/base/left", "Cardiomegaly/chronic")),
        3: report(3, impression="XXXX.", majors=("No Indexing",)),
    }
    raw = tree(tmp_path / "raw", changes=changes)
    config = small_config(split="hash", views=("FRONTAL",), prompts=("{report}", "{labels}; {view}; {findings}"))
    summary = prepare(config, raw, tmp_path / "out")
    assert sum(summary.splits.values()) == 30
    assert summary.splits["train"] > 20
    assert (summary.bad, summary.not_selected) == ({}, {"view LATERAL": 30})
    found = records(tmp_path / "out")
    one, two, three = (found[ids(number)[0]] for number in (1, 2, 3))
    assert [text.decode() for text in one["prompts"]] == [
        "Clear, number 1.",
        "no finding; FRONTAL; Heart normal.",
    ]
    assert two["prompts"][1] == b"cardiomegaly, pulmonary atelectasis; FRONTAL; Heart normal."
    assert [label.decode() for label in two["labels"]] == ["Cardiomegaly", "Pulmonary Atelectasis"]
    assert [label.decode() for label in one["labels"]] == ["No Finding"]
    assert list(three["prompts"]) == [b"Heart normal."]
    assert len(three["labels"]) == 0
    assert (one["patient"], one["view"]) == (b"CXR1", b"FRONTAL")
    expected = picture(1).reshape(16, 5, 12, 5).mean((1, 3))
    assert abs(images.decode_png(one["image"])[2:-2, 4:-4, 0] - expected[2:-2, 2:-2]).max() < 3
    assert "Open-i" in (tmp_path / "out" / "README.md").read_text()
    assert prepare(config, raw, tmp_path / "out") == summary
    (raw / "ecgen-radiology/3.xml").write_text(report(3))
    with pytest.raises(UserError, match="other settings or from another source"):
        prepare(config, raw, tmp_path / "out")


def test_the_images_of_a_report_are_in_one_split(tmp_path):
    summary = prepare(small_config(**HASHED), tree(tmp_path / "raw"), tmp_path / "out")
    assert sum(summary.splits.values()) == 60
    assert all(count % 2 == 0 for count in summary.splits.values())


@pytest.mark.parametrize("folder", [".", "images", "images/images_normalized"])
def test_kaggles_names_and_folders(tmp_path, folder):
    summary = prepare(small_config(**HASHED), tree(tmp_path / "raw", 12, folder=folder, kaggle=True), tmp_path / "out")
    assert summary.bad == {}
    assert summary.views["train"]["FRONTAL"] > 6
    assert records(tmp_path / "out").keys() == {name for number in range(1, 13) for name in ids(number)}


def test_one_key_of_an_image_whatever_it_is_called():
    assert image_key("CXR1_1_IM-0001-3001") == image_key("1_IM-0001-3001.dcm.png") == "1_IM-0001-3001"
    assert image_key("CXR11_IM-0067-1001.jpg") == image_key("11_IM-0067-1001.dcm") == "11_IM-0067-1001"
    assert image_key("CXR1_IM-0001-3001") != image_key("CXR11_IM-0001-3001")


def test_bad_rows_are_listed_with_their_reason(tmp_path):
    changes = {
        2: report(2)[:200],
        3: report(3, findings="&b;", head=BOMB),
        4: report(4, impression="Café.").encode("latin-1"),
        5: report(5, findings=None, impression="XXXX"),
        6: report(6).replace("<parentImage", "<other").replace("</parentImage", "</other"),
        7: report(7).replace("uId", "pmcId"),
        8: report(8).replace(ids(8)[0], ids(9)[0]),
        10: report(10).replace(ids(10)[0], "../../outside"),
        12: report(12, findings="&undeclared;"),
        13: b"",
        14: report(14, findings="&b;", head=BOMB).encode("utf-16-le"),
    }
    raw = tree(tmp_path / "raw", changes=changes)
    (raw / f"NLMCXR_png/{ids(11)[0]}.png").unlink()
    summary = prepare(small_config(**HASHED, max_bad_share=0.5), raw, tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    names = sorted(path.name for path in (raw / "ecgen-radiology").iterdir())
    assert {row["table"] for row in listed} == {"ecgen-radiology"}
    assert {(names[row["row"] - 1], row["reason"]) for row in listed} == {
        ("2.xml", "unreadable_report"),
        ("3.xml", "report_declares_entities"),
        ("4.xml", "report_not_utf8"),
        ("6.xml", "report_without_image"),
        ("7.xml", "report_without_patient"),
        ("9.xml", "duplicate_id"),
        ("10.xml", "path_outside_tree"),
        ("11.xml", "missing_image"),
        ("12.xml", "unreadable_report"),
        ("13.xml", "unreadable_report"),
        ("14.xml", "report_not_utf8"),
    }
    assert summary.not_selected == {"no usable section": 2}
    assert sum(summary.splits.values()) == 60 - 2 * 8 - 2 - 1 - 1 - 1


def test_an_entity_bomb_is_not_expanded(tmp_path):
    names = "abcdefghij"
    bomb = "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in itertools.pairwise(names))
    path = tmp_path / "1.xml"
    path.write_text(report(1, findings="&j;", head=f'<!DOCTYPE r [<!ENTITY a "lol">{bomb}]>'))
    with pytest.raises(Rejected, match="report_declares_entities"):
        read_report(path)
    path.write_text(report(1, findings="<a>" * 100_000 + "Deep." + "</a>" * 100_000))
    assert read_report(path).sections["findings"] == "Deep."


def test_the_table_of_views(tmp_path):
    raw = tree(tmp_path / "raw", 12, views=False)
    assert prepare(small_config(**HASHED), raw, tmp_path / "out").views["train"].keys() == {""}
    with pytest.raises(UserError, match=r"no usable row; bad: none; not selected: view empty 24 \(data.views"):
        prepare(small_config(split="hash"), raw, tmp_path / "none")
    write_views(raw / "indiana_projections.csv", [["1", "1_IM-0001-1001.dcm.png", "Frontal"]])
    summary = prepare(small_config(split="hash", views=("FRONTAL",)), raw, tmp_path / "one")
    assert (sum(summary.splits.values()), summary.not_selected) == (1, {"view empty": 23})
    write_views(raw / "indiana_projections.csv", [["1", "x.png", "Frontal"]], ("uid", "file", "projection"))
    with pytest.raises(UserError, match=r"indiana_projections\.csv: no column filename; it has uid, file, projection"):
        prepare(small_config(**HASHED), raw, tmp_path / "none")


def test_what_it_does_not_have_is_told(tmp_path):
    raw = tree(tmp_path / "raw", 2)
    with pytest.raises(UserError, match="data.split is 'official': may be hash for OpenI: set data.split=hash"):
        prepare(small_config(), raw, tmp_path / "out")
    with pytest.raises(UserError, match=r"asks for \{age\}, which .* does not give; it gives \{findings\}"):
        prepare(small_config(**HASHED, prompts=("{age}",)), raw, tmp_path / "out")
    with pytest.raises(UserError, match="not a source; .*ecgen-radiology"):
        prepare(small_config(**HASHED), raw / "NLMCXR_png", tmp_path / "out")
