import base64
import dataclasses
import hashlib
import io
import json
import math
import re
import struct
import warnings
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.curves import loss_svg, read_run, smooth, speed_svg
from jaxcxr.evaluation.findings import Report
from jaxcxr.evaluation.page import PHANTOMS, Classified, Page, drawings, render
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.prompts import EFFUSIONS, asked_effusion
from jaxcxr.phantoms.scores import score, score_grades
from jaxcxr.phantoms.truth import CLASSES, GRADES, kind_of, present
from tests.phantoms.classifiers import untrained

NASTY = "<script>alert('x')</script> & \"left\""
_VOID = ("img", "meta", "wbr", "path", "use")
CONFIG = str(Path(__file__).parents[2] / "configs" / "base.py")


class _Reader(HTMLParser):
    """Collects images, links and text, and checks that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.images, self.addresses, self.text, self.open, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "xlink:href") if name in attrs]
        if tag == "img":
            self.images.append(attrs["src"])
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in _VOID:
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
    rows += [{"step": step, "fd/x/y": 100.0 - step / 10} for step in (200, 390)]
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
    seen = Classified(untrained(), 64, reported(generated, ["left", *asked[1:]]), reported(real, EFFUSIONS))
    return Page(
        title=NASTY,
        generated={"samples": generated},
        real=real,
        real_name=PHANTOMS,
        rows=(),
        left_out=(),
        counts={},
        classified={"samples": seen},
        runs=[read_run(workdir)],
        settings={NASTY: NASTY},
    )


def row(of, metric, value, group="", extractor="network", **others):
    """A row with an interval of 0.1 around its value, a floor of a half of it, and 40 images."""
    low, high = (value - 0.1, value + 0.1) if value is not None else (None, None)
    found = Row(of, metric, extractor, group, value, low, high, value and value / 2, None, None, 40)
    return dataclasses.replace(found, **others)


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


def test_a_page_with_numbers_has_one_script_and_escapes_every_name(evaluated):
    rows = [row(NASTY, "fd", 2.0, extractor=NASTY), row(NASTY, "fd", 3.0, f"label={NASTY}", NASTY)]
    rows += [row(NASTY, metric, 0.5, extractor=NASTY) for metric in ("precision", "recall", "vendi")]
    counts = {NASTY: {"images": 40, "unreadable": 1}}
    generated = {NASTY: evaluated.generated["samples"]}
    page = dataclasses.replace(evaluated, generated=generated, rows=rows, left_out=[NASTY], counts=counts)
    text = render(dataclasses.replace(page, classified={NASTY: page.classified["samples"]}, real_name=NASTY))
    reader = _Reader(text)
    assert reader.tags.count("script") == 1
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert "eval" not in script
    assert NASTY not in text
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert not re.search(r"https?:|//www|@import|url\((?!#)", text)
    for told in (f"{NASTY} of other patients", f"label={NASTY}", f"{NASTY}: 1 unreadable"):
        assert told in "".join(reader.text)


def told(page):
    """A page's text, with spaces between its elements."""
    return re.sub(r"\s+", " ", " ".join(_Reader(re.sub("<wbr>", "", page)).text))


def test_every_number_stands_beside_that_of_real_images(evaluated):
    rows = [row("a", "fd", 12.5, floor_low=6.0, floor_high=6.5), row("b", "fd", None), row("a", "vendi", 4.0)]
    rows += [row("a", "fd", 25.0, "label=edema"), row("a", "ssim_within", 0.25, extractor="", floor=None)]
    pictures = evaluated.generated["samples"]
    page = dataclasses.replace(evaluated, classified={}, generated={"a": pictures, "b": pictures}, rows=rows)
    text = told(render(page))
    whole, parts = text.split("By group: 1 numbers")
    assert "a fd ↓ 12.5 12.4 to 12.6 6.25 6 to 6.5 network 40" in whole.replace("● ", "")
    assert "b fd ↓ – – network 40" in whole.replace("■ ", "")
    assert "a vendi ≈ 4 3.9 to 4.1 2 network 40" in whole.replace("● ", "")
    assert "a ssim_within ≈ 0.25 0.15 to 0.35 – pixels 40" in whole.replace("● ", "")
    assert "label=edema ● a fd ↓ 25 24.9 to 25.1 12.5 network 40" in parts
    assert "↓ lower is better, ↑ higher is better, ≈ near that number is better" in whole


def test_what_is_drawn_lies_where_its_number_is():
    rows = [row("a", "fd", 2.0, floor=4.0, floor_low=3.0, floor_high=5.0), row("b", "fd", 7.5, floor=None)]
    assert drawings.Scale.from_zero(rows) == drawings.Scale(0.0, 7.6)
    assert drawings.Scale.from_zero(rows, least=10.0) == drawings.Scale(0.0, 10.0)
    around = drawings.Scale.around(rows)
    assert (around.low, around.high) == pytest.approx((1.9 - 0.06 * 5.7, 7.6 + 0.06 * 5.7))
    mark = drawings.Mark("#030303", "var(--blue)", "●", "o")
    drawn = drawings.bar(rows[0], drawings.Scale(0.0, 10.0), mark)
    assert '<rect class="fill" x="0.00%" width="20.00%"' in drawn
    assert '<rect class="band" x="30.00%" width="20.00%"' in drawn
    assert '<line class="real" x1="40.00%" x2="40.00%"' in drawn
    assert 'x1="19.00%" x2="21.00%"' in drawn
    assert "real" not in drawings.bar(rows[1], drawings.Scale(0.0, 10.0), mark)
    less = dataclasses.replace(rows[0], value=-2.0, low=None, high=None)
    assert '<rect class="fill" x="0.00%" width="50.00%"' in drawings.bar(less, drawings.Scale(-2.0, 2.0), mark)
    assert '<circle class="dot" cx="20.00%"' in drawings.whisker(rows[0], drawings.Scale(0.0, 10.0), mark)
    nothing = row("a", "fd", math.nan, floor=math.inf, floor_low=None, floor_high=None)
    assert "nan" not in drawings.whisker(nothing, drawings.Scale.around([nothing]), mark)


def test_rows_by_group_are_folded_where_they_are_many_and_drawn_as_bars(evaluated):
    rows = [row("samples", "fd", number + 1.0, f"label={number}") for number in range(20)]
    rows += [row("samples", "grade", 0.5, "finding=edema"), row("samples", "kid", 0.25, "label=3")]
    page = render(dataclasses.replace(evaluated, rows=rows))
    assert "<details>\n<summary>By group: 22 numbers" in page
    assert "<details open>\n<summary>By group: 20 numbers" in render(dataclasses.replace(evaluated, rows=rows[:20]))
    assert page.count('<svg class="bar"') == 22
    assert [re.sub("<[^>]*>", "", one) for one in re.findall("<h2>(By .*?)</h2>", page)] == [
        "By finding, as a classifier sees it",
        "By label",
    ]
    assert 'title="samples: 20 (19.9 to 20.1); phantoms 10; n = 40"' in page


def test_what_is_left_out_is_said(evaluated):
    counts = {"samples": {"images": 9, "unreadable": 0, "equal to a real image": 2}, "real": {"images": 5}}
    page = dataclasses.replace(evaluated, left_out=["kid needs more"], counts=counts)
    text = told(render(page))
    assert "samples: 2 equal to a real image; 9 images compared" in text
    assert "real: " not in text
    assert "Left out: 1 kid needs more" in text
    assert "Left out" not in told(render(evaluated))


def test_sets_of_the_same_prompts_stand_side_by_side(evaluated):
    ours = [picture(number, f"prompt {number // 2}") for number in range(40)]
    theirs = [picture(100 + number, f"prompt {20 - number}") for number in range(21)]
    page = dataclasses.replace(evaluated, generated={"a": ours, "b": theirs}, real=[], runs=[], classified={})
    text = render(page)
    assert len(_Reader(text).images) == 2 * 12
    assert "Prompts that all sets have: 12 of 20, evenly spaced." in text
    images = re.findall('src="data:image/png;base64,([^"]*)"', text)
    shown = [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(one))))[0, 0]) for one in images]
    assert shown[:2] == [0, 120], "the first image of each set for prompt 0"
    assert shown[-2:] == [38, 101], "and for prompt 19, the last that both have"
    others = [dataclasses.replace(one, text="other" * place) for place, one in enumerate(theirs, 1)]
    others[3] = picture(9, "prompt 3")
    text = render(dataclasses.replace(page, generated={"a": ours, "b": others}, shown=10))
    assert len(_Reader(text).images) == 2 * 5
    assert "<h3>a</h3>" in text


def test_several_classified_sets_have_their_numbers_and_tables_under_their_names(evaluated):
    pictures, one = evaluated.generated["samples"], evaluated.classified["samples"]
    right = reported(pictures, [side for side in EFFUSIONS for _ in range(3)])
    both = {"first": one, "second": dataclasses.replace(one, generated=right)}
    page = dataclasses.replace(evaluated, generated={"first": pictures, "second": pictures}, classified=both)
    text = told(render(page))
    assert re.search("first 91.7 % of the generated.*second 100.0 % of the generated.*96.0 % is the classifier", text)
    assert re.search("Asked for against shown.* first .*83.3 % of 6.* second .*100.0 % of 6", text)
    assert text.count("How well the classifier sees") == 1


def test_real_patients_are_announced_wherever_they_are_shown(evaluated):
    said = "are of patients"
    assert said not in render(evaluated), "phantoms are nobody's"
    page = dataclasses.replace(evaluated, real_name="real images", classified={})
    assert "The real images on this page are of patients" in render(page)
    alone = dataclasses.replace(page, real=[])
    assert said not in render(alone)
    pairs = [(picture(1), picture(2, "secret"), 0.5), (picture(3), picture(4), 0.25)]
    paired = render(dataclasses.replace(alone, neighbours=pairs))
    assert said in paired
    assert re.search("distance 0.25.*distance 0.5.*secret", paired, re.DOTALL)
    run = dataclasses.replace(evaluated.runs[0], config={"objective": {"name": "autoencoder"}})
    assert said in render(dataclasses.replace(alone, runs=[run], reconstructions=True))
    assert said not in render(dataclasses.replace(alone, runs=[run]))


def test_page_has_the_curves_of_a_runs_evaluations(evaluated):
    page = render(evaluated)
    assert page.count("fd/x/y by step") == 1
    assert "loss/timesteps" not in page
    for method, caption in (("diffusion", "Samples, a row a prompt"), ("classifier", "what their answers depend on")):
        run = dataclasses.replace(evaluated.runs[0], config={"method": method})
        assert caption in render(dataclasses.replace(evaluated, runs=[run], reconstructions=True))


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
    assert page.count("<svg") == 3
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


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
