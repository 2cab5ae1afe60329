import dataclasses
import html
import json
import re
import stat
import struct
import warnings
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.evaluation.curves import loss_svg, read_run, smooth, speed_svg
from jaxcxr.evaluation.findings import Report
from jaxcxr.evaluation.page import Classified, Page, render
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.classifier import to_bytes
from jaxcxr.phantoms.prompts import EFFUSIONS, asked_effusion
from jaxcxr.phantoms.scores import score, score_grades
from jaxcxr.phantoms.tree import write_tree
from jaxcxr.phantoms.truth import CLASSES, GRADES, kind_of, present
from tests.phantoms.classifiers import untrained

NASTY = "<script>alert('x')</script> & \"left\""
CONFIG = str(Path(__file__).parents[2] / "configs" / "base.py")


class _Reader(HTMLParser):
    """Collects images, links and text, and checks that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.images, self.addresses, self.text, self.open, self.tags = [], [], [], [], set()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "xlink:href") if name in attrs]
        if tag == "img":
            self.images.append(attrs["src"])
        if tag not in ("img", "meta", "path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def picture(number, text="", effusion=""):
    return Picture(np.full((64, 64), number, np.uint8), text, asked_effusion(effusion) if effusion else None)


def reported(pictures, shown):
    """The report of pictures in which these effusions are seen."""
    asked, seen = (
        np.stack([present(one.findings) for one in all_of])
        for all_of in ([p.asked for p in pictures], map(asked_effusion, shown))
    )
    about = np.array([[kind_of(name) == "effusion" for name in CLASSES]] * len(pictures))
    nothing = np.full((len(pictures), len(GRADES)), -1)
    return Report(asked, seen, about, score(asked, seen), score_grades(nothing, nothing))


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run <1>"
    (folder / "samples").mkdir(parents=True)
    rows = [{"step": step, "loss": 1 / step, "images_per_second": 40.0} for step in range(10, 400, 10)]
    rows += [{"step": 200, "validation_loss": 0.02}, {"step": 390, "validation_loss": 0.01}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    (folder / "config.json").write_text(json.dumps({"objective": {"name": "diffusion"}}))
    for step in (100, 390):
        Image.fromarray(np.full((128, 2048), 7, np.uint8)).save(folder / "samples" / f"{step:08d}.png")
    return folder


@pytest.fixture
def evaluated(workdir):
    asked = [side for side in EFFUSIONS for _ in range(3)]
    generated = [picture(index, NASTY, side) for index, side in enumerate(asked)]
    real = [picture(100 + index, "small left effusion", side) for index, side in enumerate(EFFUSIONS)]
    classified = Classified(untrained(), 64, reported(generated, ["left", *asked[1:]]), reported(real, EFFUSIONS))
    return Page(NASTY, generated, real, "phantoms", classified, [read_run(workdir)], {NASTY: NASTY})


def test_page_is_whole_escaped_and_needs_nothing_else(evaluated):
    page = render(evaluated)
    reader = _Reader(page)
    assert "script" not in reader.tags
    assert len(reader.images) == 12 + 4 + 1
    assert len(set(reader.images)) == 17
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert not re.search(r"https?:|//www|@import|url\((?!#)", page)
    assert NASTY not in page
    text = "".join(reader.text)
    assert text.count(NASTY) == 1 + 1 + 12 + 2
    assert "not for diagnosis" in text
    assert "Training: run <1>" in text
    assert "step 390" in text


def test_page_marks_what_is_wrong(evaluated):
    page = render(evaluated)
    assert page.count('class="wrong"') == 1
    assert page.count('class="right"') == 11
    assert "asked no effusion, saw left effusion" in page
    assert "91.7 %" in page
    assert [re.sub("<[^>]*>", "", title) for title in re.findall("<h3>.*?</h3>", page)[:4]] == [
        "No effusion 2 of 3 show it",
        "Left effusion 3 of 3 show it",
        "Right effusion 3 of 3 show it",
        "Bilateral effusion 3 of 3 show it",
    ]


def test_page_has_a_row_for_every_finding_asked_for_and_the_classifiers_own_table(evaluated):
    text = re.sub(r"\s+", " ", "".join(_Reader(render(evaluated)).text))
    asked, own = text.split("Asked for against shown")[1].split("How well the classifier sees")
    assert "left effusion100.0 % of 6 (61.0 to 100.0)83.3 % of 6 (43.6 to 97.0)" in asked
    assert "left nodule–100.0 % of 12" in asked
    assert "left nodule97.4 % of 500" in own
    assert "“untrained”, on drawn radiographs of 64²" in own
    for name in CLASSES:
        assert name in asked
        assert name in own
    assert "size of edema90.0 % of 100" in own
    assert "96.0 % is the classifier’s worst rate on phantoms of new patients: sensitivity to left pacemaker" in text


def test_page_shows_no_reconstructions_unless_asked(evaluated):
    run = dataclasses.replace(evaluated.runs[0], config={"objective": {"name": "autoencoder"}})
    page = dataclasses.replace(evaluated, runs=[run])
    assert "reconstructions" not in render(page)
    assert "reconstructions" in render(dataclasses.replace(page, reconstructions=True))


def test_curves_are_svg_in_the_pages_colours(evaluated):
    page = render(evaluated)
    assert page.count("<svg") == 2
    assert "#0101" not in page
    assert "var(--blue)" in page.split("</style>")[1]


def test_smooth_is_a_mean_that_keeps_constants():
    assert smooth(np.full(7, 3.0), 4) == pytest.approx(np.full(7, 3.0))
    assert smooth(np.array([0.0, 3.0, 6.0]), 3) == pytest.approx([1.5, 3.0, 4.5])
    assert smooth(np.array([2.0]), 5) == pytest.approx([2.0])


def test_what_is_not_finite_is_a_gap_in_the_curves(tmp_path):
    rows = [{"step": step, "loss": None if 10 <= step < 20 else float(step)} for step in range(60)]
    rows += [{"step": 5, "validation_loss": None}, {"step": 6, "images_per_second": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text("{}")
    run = read_run(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.flatnonzero(np.isnan(run.series["loss"][1])).tolist() == list(range(10, 20))
        smoothed = smooth(run.series["loss"][1], 4)
        assert np.flatnonzero(np.isnan(smoothed)).tolist() == list(range(10, 20))
        assert smoothed[[9, 20]] == pytest.approx([8, 20.5])
        svg = loss_svg(run)
        assert speed_svg(run) == ""
    assert "nan" not in svg.lower()
    assert [path.count("M") for path in re.findall(r' d="([^"]*)"', svg) if path.count("L") > 20] == [2, 2]


def test_a_run_whose_loss_was_never_finite_has_no_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    (tmp_path / "config.json").write_text("{}")
    assert loss_svg(read_run(tmp_path)) == ""


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a workdir"):
        read_run(tmp_path)


def test_a_sheet_that_is_no_png_or_lies_elsewhere_is_refused(evaluated, workdir):
    sheet = workdir / "samples" / "00000390.png"
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", sheet.read_bytes()[:60]):
        sheet.write_bytes(data)
        with pytest.raises(UserError, match=r"00000390\.png: cannot be decoded"):
            render(evaluated)
    sheet.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">2I", 100_000_000, 2) + b"\x08\0\0\0\0"))
    with pytest.raises(UserError, match="cannot be decoded|too many for a sheet"):
        render(evaluated)
    sheet.unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(workdir.parent / "elsewhere.png")
    sheet.symlink_to(workdir.parent / "elsewhere.png")
    with pytest.raises(UserError, match="outside"):
        read_run(workdir)


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
    return main(["evaluate", "--config", CONFIG, "--config.data.size=64", *folders, *options])


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
    assert numbers["total"] == numbers["shows_what_was_asked"]["total"] == 5
    assert list(numbers["findings"]) == list(CLASSES)
    asked = {name: one["sensitivity"]["total"] for name, one in numbers["findings"].items()}
    assert {name: total for name, total in asked.items() if total} == {
        "right effusion": 2,
        "left effusion": 2,
        "left nodule": 1,
        "edema": 1,
    }
    assert all(one["specificity"]["total"] == 5 - asked[name] for name, one in numbers["findings"].items())
    assert all(len(one["specificity"]["interval_95"]) == 2 for one in numbers["findings"].values())
    assert numbers["grades"]["effusion"]["total"] == 0, "an older manifest says no size"
    assert numbers["grades"]["edema"]["total"] == 1
    assert numbers["classifier"]["size"] == 64
    assert numbers["classifier"]["held_out"]["64"]["classes"]["edema"]["sensitivity"]["total"] == 500
    assert numbers["real"]["total"] > 0
    assert "Ask both." in html.unescape((tmp_path / "out" / "index.html").read_text())
    assert _evaluate(tmp_path, *options) == 0
    assert (tmp_path / "out" / "evaluation.json").read_text() == first
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["evaluation.json", "index.html"]


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
    (tmp_path / "real").mkdir()
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / "real" / "patient.png")
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
        (tmp_path / "real").mkdir()
        Image.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / "real" / "patient.png")
    _samples(tmp_path / "samples", [{"prompt": "p", "effusion": "left"}])
    planted = "--config.samples.prompts=('PLANTED report of a patient',)"
    assert _evaluate(tmp_path, planted) == 0
    said = capsys.readouterr()
    assert "PLANTED" not in _everything_in(tmp_path / "out") + said.out + said.err
    assert _evaluate(tmp_path, planted, "--show-real") == 0
    assert "PLANTED" in _everything_in(tmp_path / "out")


def test_others_cannot_read_the_page_unless_its_folder_was_opened(tmp_path):
    (tmp_path / "real").mkdir()
    _samples(tmp_path / "samples", [{"prompt": "Report of a patient."}])
    assert _evaluate(tmp_path) == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    (tmp_path / "out").chmod(0o750)
    assert _evaluate(tmp_path) == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "index.html").stat().st_mode) & 0o044


def test_verb_follows_no_link_to_where_the_page_would_be(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "out").mkdir()
    for name in ("index.html", ".index.html.partial", "evaluation.json"):
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
    assert _evaluate(tmp_path, "--config.data.size=0") == 2
    assert "--config.data.size=0: may be from 1" in capsys.readouterr().err


def test_verb_tells_what_is_missing(tmp_path, capsys):
    assert _evaluate(tmp_path) == 2
    assert "manifest.jsonl" in capsys.readouterr().err
    _samples(tmp_path / "samples", [{"prompt": "p"}])
    assert _evaluate(tmp_path) == 2
    assert "real: no such folder" in capsys.readouterr().err
