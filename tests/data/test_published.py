"""The published selections on trees with MIMIC-CXR's own shares of reports that lack a section."""

import json

import pytest
from test_prompts import hospital
from test_selection import llava_rad
from trees import mimic_tree, report, rows, write_table

from jaxcxr import config as configs
from jaxcxr.data import tokens
from jaxcxr.data.prepare import prepare
from tests.training.runs import ROOT


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """120 images: of 20 reports one has neither section, three findings alone; of five patients one has no race."""
    members = rows(train=100, validate=8, test=12)
    for row in members:
        row.view = "PA"
        if row.number % 20 == 0:
            row.text = report(None).encode()
        elif row.number % 20 in (5, 10, 15):
            row.text = report(None, "Lungs are clear and well inflated.").encode()
        if row.number > 100:
            row.number += 18_000_000  # subjects 19…
    root = tmp_path_factory.mktemp("published")
    mimic_tree(root, members)
    hospital(root, members)
    people = sorted({row.subject for row in members})
    races = [[who, "1", "2175-01-01 00:00:00", "WHITE" if int(who) % 5 else "UNKNOWN"] for who in people]
    write_table(root / "mimiciv/3.1/hosp/admissions.csv.gz", ["subject_id", "hadm_id", "admittime", "race"], races)
    tokens.train(["Image number is clear. year old white male"] * 3, 600, root / "tokenizer")
    said = [llava_rad(row, f"Findings {row.number} of it." if row.number % 3 else None) for row in members]
    (root / "said.json").write_text(json.dumps(said))
    return root


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "configs/data").glob("*.py")))
def test_a_published_selection_passes_with_the_shares_of_mimic(tree, tmp_path, name):
    given = {"chexgenbench": f"report_tables=['{tree}/said.json']"}.get(name, f"tokenizer={tree}/tokenizer")
    config = configs.load(ROOT / f"configs/data/{name}.py", [f"--config.data.{given}", "--config.data.size=16"]).data
    config.unlock()
    config.tokenizer_vocab = 600
    summary = prepare(config, tree, tmp_path / "out")
    assert summary.bad == {}
    assert summary.splits["train"]
    assert summary.splits["validate"]
    assert sum(summary.not_selected.values()) >= 0.2 * 120
    assert "bad" not in str(summary)
    assert (summary.carved > 0) == (name != "chexgenbench")


def test_damage_still_counts_beside_them(tree, tmp_path):
    config = configs.load(ROOT / "configs/data/roentgen.py", [f"--config.data.tokenizer={tree}/tokenizer"]).data
    config.unlock()
    config.size = 16
    assert config.max_bad_share == 0.1
    images = sorted((tree / "mimic-cxr-jpg").rglob("*.jpg"))[:15]
    kept = [image.read_bytes() for image in images]
    try:
        for image in images:
            image.write_bytes(b"")
        with pytest.raises(Exception, match=r"of \d+ selected rows are bad, 1\d\.\d% \(empty_image \d+\)"):
            prepare(config, tree, tmp_path / "out")
    finally:
        for image, data in zip(images, kept, strict=True):
            image.write_bytes(data)
