"""Whether images show the labels that they were asked for, by a classifier of real radiographs."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation.asked import Scorer, evaluate_asked, is_scorer, open_scorer
from jaxcxr.evaluation.metrics.classification import accuracy_at, auroc, best_f1_threshold
from jaxcxr.evaluation.sets import open_set

NAMES = ("Edema", "Pleural Effusion")


def bands(images: np.ndarray) -> np.ndarray:
    """A classifier that sees edema in the upper half, an effusion in the lower one and fractures nowhere."""
    halves = [images[:, :10].mean((1, 2)), images[:, 10:].mean((1, 2))]
    return np.stack([*halves, np.zeros(len(images))], axis=-1).astype(np.float32) / 255


SCORER = Scorer("bands", ("Edema", "Effusion", "Fracture"), bands)


def write(folder, count, noise, seed):
    """Images whose halves are light where a label is asked for."""
    folder.mkdir()
    draw, rows = np.random.default_rng(seed), []
    for number in range(count):
        there = draw.random(2) < 0.4
        pixels = 100 + 80 * np.repeat(there, 10)[:, None] + noise * draw.standard_normal((20, 20)).mean() * 100
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.png")
        labels = [name for name, one in zip(NAMES, there, strict=True) if one]
        rows.append({"file_name": f"{number:03}.png", "labels": labels, "patient": f"p{number // 2}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_set(folder)


def everything(images, names=NAMES):
    pixels = np.stack([item.load(0) for item in images.items])
    truth = np.array([[name in item.groups["label"] for name in names] for item in images.items])
    return truth, bands(pixels)[:, :2], np.array([item.patient for item in images.items])


def test_rows_are_of_what_was_asked_with_cuts_and_floors_of_real_images(tmp_path):
    real, drawn = write(tmp_path / "real", 80, 8, 1), write(tmp_path / "drawn", 60, 20, 2)
    rows, left_out = evaluate_asked(real, [drawn], SCORER, 20, 0)
    assert not left_out
    found = {(row.metric, row.group): row for row in rows}
    truth, scores, _ = everything(drawn)
    theirs, seen, patients = everything(real)
    unique = np.unique(patients)
    first = np.isin(patients, np.random.default_rng(0).permutation(unique)[: len(unique) // 2])
    for place, name in enumerate(("Edema", "Effusion")):
        row = found["auroc", f"finding={name}"]
        assert row.value == pytest.approx(auroc(truth[:, place], scores[:, place]))
        assert row.floor == pytest.approx(auroc(theirs[~first, place], seen[~first, place]))
        assert (row.set, row.extractor, row.n) == ("drawn", "bands", 60)
        cut = best_f1_threshold(theirs[first, place], seen[first, place])
        wanted = accuracy_at(truth[:, place], scores[:, place], cut)
        assert found["accuracy", f"finding={name}"].value == pytest.approx(wanted)
    cut = best_f1_threshold(theirs[first, 0], seen[first, 0])
    other = truth[:, 1] & ~truth[:, 0]
    wanted = (scores[other, 0] >= cut).mean()
    assert found["confusion", "asked=Effusion,seen=Edema"].value == pytest.approx(wanted)
    plain = {group for metric, group in found if metric != "confusion"}
    assert plain == {"", "finding=Edema", "finding=Effusion"}


def test_sets_that_do_not_say_what_they_were_asked_for(tmp_path):
    real = write(tmp_path / "real", 20, 8, 1)
    write(tmp_path / "drawn", 20, 8, 2)
    (tmp_path / "drawn" / "metadata.jsonl").unlink()
    rows, left_out = evaluate_asked(real, [open_set(tmp_path / "drawn")], SCORER, 20, 0)
    assert not rows
    assert left_out == ["drawn: bands has nothing to compare; no image says what it was asked for"]
    with pytest.raises(UserError, match="drawn: none of its images has a label; bands needs some"):
        evaluate_asked(open_set(tmp_path / "drawn"), [real], SCORER, 20, 0)


def test_labels_that_the_classifier_does_not_know(tmp_path):
    real, drawn = write(tmp_path / "real", 40, 8, 1), write(tmp_path / "drawn", 40, 8, 2)
    other = Scorer("other", ("Hernia",), lambda images: np.zeros((len(images), 1), np.float32))
    with pytest.raises(UserError, match=r"the classifier sees none of Edema, Pleural Effusion; its outputs are Hernia"):
        evaluate_asked(real, [drawn], other, 20, 0)
    some = Scorer("some", ("Edema",), lambda images: bands(images)[:, :1])
    rows, left_out = evaluate_asked(real, [drawn], some, 20, 0)
    assert {row.group for row in rows if row.metric != "confusion"} == {"", "finding=Edema"}
    assert "drawn: some has no output for Pleural Effusion" in left_out


def test_torchxrayvisions_classifier_on_square_images(tmp_path):
    import torch
    from flax import nnx

    from jaxcxr.evaluation.extractors import xrv
    from jaxcxr.interop.layout import to_torch
    from jaxcxr.models.named import named_parameters

    values = named_parameters(xrv.classifier(nnx.Rngs(0)))
    state = dict(to_torch(name, np.array(value)) for name, value in values.items())
    torch.save({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}, tmp_path / "xrv.pth")
    assert is_scorer(f"xrv={tmp_path / 'xrv.pth'}")
    scored = open_scorer(f"xrv={tmp_path / 'xrv.pth'}")
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)
    found = scored.scores(images)
    module = xrv.classifier(nnx.Rngs(0))
    inputs = np.stack([xrv.XRV.preprocessings["xrv"](Image.fromarray(image)) for image in images])
    np.testing.assert_allclose(found, xrv.scores(module.logits(module(inputs))), atol=1e-5)
    assert found.shape == (3, len(scored.outputs))


def test_what_is_no_classifier(tmp_path):
    assert not is_scorer("first")
    assert is_scorer(str(tmp_path))
    for text in (str(tmp_path), "xrv=nowhere"):
        with pytest.raises(UserError):
            open_scorer(text)
