"""The audit by networks: a small one, SSCD's file as onnxruntime runs it, and real radiographs."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.audit import sscd
from jaxcxr.audit.copies import CHANGES, mixed
from jaxcxr.audit.similarity import choose
from jaxcxr.audit.smoothing import Smoothed
from jaxcxr.data.images import load_square
from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors
from jaxcxr.verbs import audit as verb
from tests.audit.test_audit_verb import command, sets, write  # noqa: F401
from tests.evaluation import small


def test_a_network_by_its_weights_digest(sets, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(extractors.EXTRACTORS, "small", small.EXTRACTOR)
    out = tmp_path / "out"
    assert main([*command(sets, out, extractor="small"), "--extractor", "pixels"]) == 0
    found = {one["extractor"]: one for one in json.loads((out / "audit.json").read_text())["similarity"]}
    assert list(found) == ["small/plain+smoothed", "pixels"]
    assert found["small/plain+smoothed"]["digest"] == extractors.choose_all(["small"])[0].digest
    assert found["small/plain+smoothed"]["authenticity"] < 1


def test_the_default_network_is_left_out_where_its_weights_are_not_here(sets, tmp_path, monkeypatch, capsys):  # noqa: F811
    absent = dataclasses.replace(small.EXTRACTOR, bundled=lambda: None)
    monkeypatch.setitem(extractors.EXTRACTORS, "small", absent)
    monkeypatch.setattr(verb, "_EXTRACTORS", ("small", "pixels"))
    words = [word for word in command(sets, tmp_path / "out") if word not in ("--extractor", "pixels")]
    assert main(words) == 0
    assert "left out: small: has no weights here; draw it" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [one["extractor"] for one in found["similarity"]] == ["pixels"]


def radiographs(count, side=64):
    """Real radiographs of different patients, uint8 (N, side, side); skips the test where there are none."""
    folder = Path(os.environ.get("JAXCXR_REAL_CXR") or Path(__file__).parents[3] / "shared" / "data" / "real_cxr")
    if not (folder / "metadata.jsonl").is_file():
        pytest.skip(f"no images in {folder}: real radiographs are not part of this project")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    firsts = [*{row["patient"]: row["file_name"] for row in rows}.values()]
    chosen = np.random.default_rng(0).permutation(len(firsts))[:count]
    return np.stack([load_square(folder / firsts[n], side)[..., 0] for n in chosen])


def test_copies_of_real_radiographs_are_found_and_other_patients_are_not(tmp_path):
    images = radiographs(220)
    train, held_out, fresh = images[:60], images[60:160], images[160:]
    drawn = fresh.copy()
    drawn[:20] = mixed({name: 1 for name in CHANGES if name not in ("crop", "shift")}, train[:20])
    folders = {
        "train": write(tmp_path / "train", train, "t"),
        "held-out": write(tmp_path / "held", held_out, "h"),
        "copying": write(tmp_path / "copying", drawn, "g"),
        "honest": write(tmp_path / "honest", fresh, "g"),
    }
    assert main(command(folders, tmp_path / "out")) == 0
    assert main(command(folders, tmp_path / "other", "honest")) == 0
    copying, honest = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("out", "other"))
    assert copying["verdict"] == "flagged"
    assert honest["verdict"] == "not flagged"
    flagged = set(copying["similarity"][0]["flagged_images"])
    assert len(flagged & set(range(20))) >= 19
    low, high = copying["similarity"][0]["share_of_copies"]["interval_95"]
    assert low <= 20 / 60 <= high
    assert honest["similarity"][0]["flagged"]["hits"] <= 6


def test_sscd_is_the_file_as_onnxruntime_runs_it():
    onnxruntime = pytest.importorskip("onnxruntime")
    try:
        seen = choose(["sscd"])[0]
    except UserError as error:
        pytest.skip(str(error))
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    prepared = seen.described.prepared(image)
    assert prepared.shape == (288, 288, 3)
    session = onnxruntime.InferenceSession(str(sscd.open_sscd().file), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: prepared[None]})[0][0]
    found = seen.open_network(4).features([prepared, None])
    np.testing.assert_array_equal(found[0], wanted)
    assert found.shape == (2, 512)
    assert np.isnan(found[1]).all()
    assert len(seen.described.digest) == 32


def test_sscd_finds_edited_copies_of_radiographs_that_are_unlike_other_patients(tmp_path):
    pytest.importorskip("onnxruntime")
    try:
        seen = choose(["sscd"])[0]
    except UserError as error:
        pytest.skip(str(error))
    images = radiographs(16, 256)
    draw = np.random.default_rng(1)
    copied = [CHANGES[name](one, draw) for one, name in zip(images, [*CHANGES] * 3, strict=False)]
    prepared = [seen.described.prepared(np.ascontiguousarray(one)) for one in (*images, *copied)]
    values = seen.open_network(4).features(prepared)
    space = seen.space(values[:16], values[:16])
    units = space.views(values)[0]
    assert ((units[16:] @ units[:16].T).argmax(axis=1) == np.arange(16)).mean() > 0.9


def test_what_sscd_lacks_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "no.onnx").write_bytes(b"no")
    monkeypatch.setattr(sscd, "_onnxruntime", lambda: None)
    monkeypatch.setattr(sscd, "_bundled", lambda: None)
    with pytest.raises(UserError, match=r"extractor sscd: its weights: not here; pip install onnxruntime"):
        choose(["sscd"])
    with pytest.raises(UserError, match=r"nowhere.onnx: not here"):
        choose(["sscd"], ["sscd=nowhere.onnx"])
    monkeypatch.undo()
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"no.onnx: is no ONNX file that can be run"):
        sscd.Session(tmp_path / "no.onnx")


def test_networks_see_smoothed_images_and_pixels_do_not():
    image = np.zeros((64, 64), np.uint8)
    image[32, 32] = 200

    class Seen:
        name, digest = "x", "d"

        def prepared(self, pixels):
            return pixels

    smooth = Smoothed(Seen()).prepared(image).astype(float)
    assert 0.1 < smooth[32, 32] / 200 < 0.25  # 1 / 2π of the whole
    assert smooth.sum() == pytest.approx(200, rel=0.15)
    assert Smoothed(Seen()).digest == "d"
    assert choose(["pixels"])[0].described.prepared(image).max() == 50


def test_changes_keep_the_size_and_are_the_same_again():
    image = np.asarray(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).resize((40, 32)))
    for name, change in CHANGES.items():
        first, again = (change(image, np.random.default_rng(3)) for _ in range(2))
        assert first.shape == image.shape, name
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        assert (first != image).any(), name
