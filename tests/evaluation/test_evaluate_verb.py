"""The verb `evaluate`: from folders to a page and numbers, with patients kept off the page unless asked."""

import html
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.phantoms.classifier import to_bytes
from jaxcxr.phantoms.prompts import EFFUSIONS
from jaxcxr.phantoms.tree import write_tree
from jaxcxr.phantoms.truth import CLASSES
from tests.phantoms.classifiers import untrained

CONFIG = str(Path(__file__).parents[2] / "configs" / "base.py")


def _samples(folder, rows):
    folder.mkdir()
    for index, row in enumerate(rows):
        Image.fromarray(np.full((64, 64), index, np.uint8)).save(folder / f"{index:05d}.png")
        row["file_name"] = f"{index:05d}.png"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _evaluate(tmp_path, *options):
    folders = [
        "--real",
        str(tmp_path / "real"),
        "--generated",
        str(tmp_path / "samples"),
        "--out",
        str(tmp_path / "out"),
    ]
    config = ["--config", CONFIG, "--config.data.size=64", "--config.evaluation.extractors=()"]
    return main(["evaluate", *config, *folders, *options])


def _real(tmp_path):
    """A folder of one real image."""
    (tmp_path / "real").mkdir()
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / "real" / "patient.png")


def test_verb_on_phantoms(tmp_path, capsys):
    write_tree(tmp_path / "real", patients=30, size=64, seed=3)
    rows = [{"prompt": f"Ask {side}.", "effusion": side} for side in EFFUSIONS]
    nodule = {"kind": "nodule", "side": "left", "zone": "mid", "mm": 12}
    rows.append({"prompt": "A nodule and edema.", "asked": [nodule, {"kind": "edema", "size": "mild"}], "denied": []})
    _samples(tmp_path / "samples", rows)
    (tmp_path / "mine.safetensors").write_bytes(to_bytes(untrained()))
    options = ["--classifier", str(tmp_path / "mine.safetensors")]
    assert _evaluate(tmp_path, *options) == 0
    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out
    first = (tmp_path / "out" / "evaluation.json").read_text()
    numbers = json.loads(first)
    assert len({json.dumps(row) for row in numbers["rows"]}) == len(numbers["rows"])
    by = {(row["metric"], row["group"].removeprefix("finding=")): row for row in numbers["rows"]}
    assert by["shows_what_was_asked", ""]["n"] == 5
    assert [group for metric, group in by if metric == "sensitivity"] == list(CLASSES)
    asked = {name: by["sensitivity", name]["n"] for name in CLASSES}
    assert {name: total for name, total in asked.items() if total} == {
        "right effusion": 2,
        "left effusion": 2,
        "left nodule": 1,
        "edema": 1,
    }
    assert by["sensitivity", "cardiomegaly"]["value"] is None
    assert all(by["specificity", name]["n"] == 5 - asked[name] for name in CLASSES)
    assert all(0 <= by["specificity", name]["low"] <= by["specificity", name]["high"] <= 1 for name in CLASSES)
    assert by["grade", "effusion"]["n"] == 0, "an older manifest says no size"
    assert by["grade", "edema"]["n"] == 1
    assert 0 <= by["shows_what_was_asked", ""]["floor"] <= 1
    assert numbers["classifier"]["size"] == 64
    assert numbers["classifier"]["held_out"]["64"]["classes"]["edema"]["sensitivity"]["total"] == 500
    assert "Ask both." in html.unescape((tmp_path / "out" / "index.html").read_text())
    assert _evaluate(tmp_path, *options) == 0
    assert (tmp_path / "out" / "evaluation.json").read_text() == first
    files = {"evaluation.csv", "evaluation.json", "evaluation.tex", "index.html"}
    assert {file.name for file in (tmp_path / "out").iterdir() if file.is_file()} == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.data.size=32"], "reads pictures of 64 or 128 pixels a side, these have 32"),
        (["--classifier", "third"], "third: no such classifier; give first or second, or a file"),
        (["--classifier", CONFIG], "is not a classifier of phantoms"),
    ],
)
def test_verb_refuses_a_classifier_that_does_not_fit_in_one_line(tmp_path, capsys, options, message):
    (tmp_path / "mine.safetensors").write_bytes(to_bytes(untrained()))
    write_tree(tmp_path / "real", patients=5, size=64, seed=3)
    _samples(tmp_path / "samples", [{"prompt": "Ask.", "effusion": "left"}])
    assert _evaluate(tmp_path, "--classifier", str(tmp_path / "mine.safetensors"), *options) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert message in error


def test_verb_keeps_patients_off_the_page(tmp_path):
    _real(tmp_path)
    _samples(tmp_path / "samples", [{"prompt": "Report of a patient."}])
    page = tmp_path / "out" / "index.html"
    assert _evaluate(tmp_path) == 0
    assert "Report of a patient." not in page.read_text()
    assert page.read_text().count("<img") == 1
    assert "Report of a patient." not in (tmp_path / "out" / "evaluation.json").read_text()
    assert _evaluate(tmp_path, "--show-real") == 0
    assert "Report of a patient." in page.read_text()
    assert page.read_text().count("<img") == 2
    assert "on this page are of patients" in page.read_text()


def _everything_in(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()).decode("latin-1")


@pytest.mark.parametrize("phantoms", [False, True])
def test_verb_keeps_the_configs_prompts_off_the_page(tmp_path, phantoms, capsys):
    if phantoms:
        write_tree(tmp_path / "real", patients=10, size=64, seed=3)
    else:
        _real(tmp_path)
    _samples(tmp_path / "samples", [{"prompt": "p", "effusion": "left"}])
    planted = "--config.samples.prompts=('PLANTED report of a patient',)"
    assert _evaluate(tmp_path, planted) == 0
    said = capsys.readouterr()
    assert "PLANTED" not in _everything_in(tmp_path / "out") + said.out + said.err
    assert _evaluate(tmp_path, planted, "--show-real") == 0
    assert "PLANTED" in _everything_in(tmp_path / "out")


def test_others_cannot_read_the_page_unless_its_folder_was_opened(tmp_path):
    _real(tmp_path)
    _samples(tmp_path / "samples", [{"prompt": "Report of a patient."}])
    assert _evaluate(tmp_path) == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    (tmp_path / "out").chmod(0o750)
    assert _evaluate(tmp_path) == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "index.html").stat().st_mode) & 0o044


def test_verb_follows_no_link_to_where_the_page_would_be(tmp_path):
    _real(tmp_path)
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "out").mkdir()
    for name in ("index.html", ".index.html.partial", "evaluation.json", "evaluation.csv", "evaluation.tex"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    _samples(tmp_path / "samples", [{"prompt": "p"}])
    assert _evaluate(tmp_path) == 0
    assert (tmp_path / "mine").read_text() == "keep"


@pytest.mark.parametrize("name", ["../secret.png", "{}/secret.png", "link.png", "images/../../secret.png"])
def test_a_manifest_names_no_file_outside_of_its_folder(tmp_path, capsys, name):
    (tmp_path / "real").mkdir()
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "secret.png")
    folder = _samples(tmp_path / "samples", [{"prompt": "p"}])
    (folder / "images").mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "manifest.jsonl").write_text(json.dumps({"file_name": name.format(tmp_path)}) + "\n")
    assert _evaluate(tmp_path) == 2
    assert "outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_verb_refuses_a_size_that_cannot_be(tmp_path, capsys):
    assert _evaluate(tmp_path, "--config.data.size=9000") == 2
    assert "--config.data.size=9000: may be from 0" in capsys.readouterr().err


def test_verb_tells_what_is_missing(tmp_path, capsys):
    assert _evaluate(tmp_path) == 2
    assert "samples: no such folder" in capsys.readouterr().err
    _samples(tmp_path / "samples", [{"prompt": "p"}])
    assert _evaluate(tmp_path) == 2
    assert "real: no such folder" in capsys.readouterr().err
