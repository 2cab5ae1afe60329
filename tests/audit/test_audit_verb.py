"""`jaxcxr audit`: copies are flagged and others are not, numbers are those of the images, nothing of patients leaks."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.audit import copies, nearest
from jaxcxr.evaluation import features
from tests import pipelines
from tests.audit.test_pixels import smooth

SIDE = 32


def write(folder, pixels, prefix, text="", patients=None):
    """A folder of images with its table; each image is of a patient of its own unless it is said."""
    folder.mkdir(parents=True)
    rows = []
    for number, one in enumerate(pixels):
        Image.fromarray(np.clip(one, 0, 255).astype(np.uint8)).save(folder / f"{number:04}.png")
        patient = f"{prefix}{number}" if patients is None else patients[number]
        rows.append({"file_name": f"{number:04}.png", "patient": patient, "text": text and f"{text} {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sets(tmp_path):
    """Training and held-out images, and what an honest and a copying model would draw."""
    train = smooth(60, 1)
    fresh = smooth(80, 3)
    copied = fresh.copy()
    copied[:30] = copies.mixed({"noise": 1, "flip": 1, "shift": 1}, train[:30].clip(0, 255).astype(np.uint8))
    return {
        "train": write(tmp_path / "train", train, "SECRETTRAIN"),
        "held-out": write(tmp_path / "held", smooth(100, 2), "SECRETHELD"),
        "honest": write(tmp_path / "honest", fresh, "g"),
        "copying": write(tmp_path / "copying", copied, "g"),
    }


def command(sets, out, generated="copying", **options):
    given = {"train": sets["train"], "held-out": sets["held-out"], "generated": sets[generated], "out": out}
    given |= {"extractor": "pixels", "rate": 0.05, "planted": 20} | options
    return ["audit", *(word for key, value in given.items() for word in (f"--{key}", str(value)))]


def test_a_copying_model_is_flagged_and_its_copies_are_counted(sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(sets, out)) == 0
    found = json.loads((out / "audit.json").read_text())
    assert found["verdict"] == "flagged"
    (pixels,) = found["similarity"]
    low, high = pixels["share_of_copies"]["interval_95"]
    assert low <= 30 / 80 <= high
    flagged = set(pixels["flagged_images"])
    assert len(flagged & set(range(30))) >= 29
    assert len(flagged - set(range(30))) <= 5
    assert pixels["nearer_to_training_as_near_as_a_copy"]["p"] < 0.001
    assert pixels["z_u"] < -3
    assert set(pixels["recall"]) == set(copies.CHANGES)
    assert all(rate["total"] == 20 for rate in pixels["recall"].values())
    assert pixels["recall"]["jpeg"]["hits"] == pixels["recall"]["flip"]["hits"] == 20
    assert pixels["threshold"]["n"] == 100
    assert len(pixels["nearest"]) == 20
    assert {pair["generated"] for pair in pixels["nearest"]} <= set(range(30))
    said = capsys.readouterr().out
    assert "verdict: flagged" in said
    assert "planted copies found: jpeg 100 %" in said
    # Nothing of patients but on the local page, which says so.
    for text in (said, (out / "audit.json").read_text(), (out / "index.html").read_text()):
        assert "SECRET" not in text
        assert "data:image" not in text.split("</head>")[-1]
    local = (out / "local" / "pairs.html").read_text()
    assert local.count("<img") == 40
    assert "never part of a release" in local
    assert (out / "local" / "pairs.html").stat().st_mode & 0o77 == 0
    assert out.stat().st_mode & 0o77 == 0


def test_an_honest_model_is_not(sets, tmp_path):
    out = tmp_path / "out"
    assert main(command(sets, out, "honest")) == 0
    found = json.loads((out / "audit.json").read_text())
    assert found["verdict"] == "not flagged"
    assert found["similarity"][0]["share_of_copies"]["interval_95"][0] == 0
    assert found["similarity"][0]["nearer_to_training"]["p"] > 0.01
    assert abs(found["similarity"][0]["z_u"]) < 3


def test_run_again_it_computes_nothing(sets, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main(command(sets, out)) == 0
    first = (out / "audit.json").read_bytes()

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_prepared", fail)
    monkeypatch.setattr(nearest._Search, "__call__", fail)
    assert main(command(sets, out)) == 0
    assert (out / "audit.json").read_bytes() == first


def test_what_spoils_a_comparison_is_left_out_and_counted(sets, tmp_path, capsys):
    held, train = sets["held-out"], sets["train"]
    rows = [json.loads(line) for line in (held / "metadata.jsonl").read_text().splitlines()]
    for number in range(3):
        rows[number]["patient"] = f"SECRETTRAIN{number}"
    (held / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (held / "0010.png").write_bytes((train / "0000.png").read_bytes())
    (held / "0011.png").write_bytes((held / "0012.png").read_bytes())
    (held / "0013.png").write_bytes(b"no picture")
    (train / "stray.png").write_bytes((train / "0000.png").read_bytes())
    (sets["copying"] / "0079.png").write_bytes((train / "0005.png").read_bytes())
    out = tmp_path / "out"
    assert main(command(sets, out)) == 0
    counts = json.loads((out / "audit.json").read_text())["counts"]
    assert counts["held_out"] == {
        "of training patients, left out": 3,
        "images": 94,
        "unreadable": 1,
        "duplicates left out": 1,
        "equal to a training image": 1,
    }
    assert counts["train"]["not listed, left out"] == 1
    assert counts["generated"]["equal to a training image"] == 1
    assert "3 of training patients, left out" in capsys.readouterr().out


def test_the_model_is_asked_too(tmp_path, capsys):
    model = pipelines.write(tmp_path / "model")
    sets = {
        "train": write(tmp_path / "train", smooth(20, 1, 16), "t", "Small effusion ___"),
        "held-out": write(tmp_path / "held", smooth(12, 2, 16), "h", "Large effusion"),
        "copying": write(tmp_path / "drawn", smooth(12, 3, 16), "g"),
    }
    out = tmp_path / "out"
    options = {"rate": 0.4, "planted": 10, "members": 10, "prompts": 4, "steps": 2, "batch-size": 8}
    assert main(command(sets, out, checkpoint=model, **options)) == 0
    found = json.loads((out / "audit.json").read_text())
    assert [one["error"] for one in found["membership"]] == ["loss", "secmi"]
    assert all(one["members"] == one["others"] == 10 for one in found["membership"])
    assert found["prompts"]["with_marker"] == found["prompts"]["different_texts"] == 20
    assert found["prompts"]["norm_with_marker"]["n"] == 4
    assert found["prompts"]["marker_adds"]["mean"] is not None
    assert "autoencoder" in found["similarity"][0]["recall"]
    assert any("membership at 1 % false positives: needs 100" in line for line in found["left_out"])
    assert "effusion" not in (out / "audit.json").read_text() + capsys.readouterr().out
    assert "effusion" not in (out / "index.html").read_text()
    assert "Small effusion ___" in (out / "local" / "pairs.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.01}, "has 100 held-out patients; --rate 0.01 needs 299; give more of them, or a greater --rate"),
        ({"rate": 0}, "--rate 0: may be above 0 and up to 0.5"),
        ({"rate": "nan"}, "--rate nan: may be above 0 and up to 0.5"),
        ({"planted": 1}, "--planted 1: may be from 10 to"),
        ({"held-out": "nowhere"}, "nowhere: no such folder"),
        ({"extractor": "eyes"}, "extractor 'eyes': may be"),
        ({"weights": "xrv=FILE"}, "--weights xrv=FILE: is of no extractor that is asked for"),
        ({"weights": "pixels=FILE"}, "--weights pixels: it has none"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(sets, tmp_path, options, message, capsys):
    assert main(command(sets, tmp_path / "out", **options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_held_out_set_of_training_patients_is_one_line(sets, tmp_path, capsys):
    assert main(command(sets | {"held-out": sets["train"]}, tmp_path / "out")) == 2
    assert "has 0 held-out patients beside 60 who are in the training set too" in capsys.readouterr().err


def test_a_table_that_does_not_match_its_folder_is_one_line(sets, tmp_path, capsys):
    (sets["copying"] / "0003.png").unlink()
    assert main(command(sets, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "has no file '0003.png', though it is listed" in error
    assert error.count("\n") == 1
