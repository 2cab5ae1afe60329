"""Whether generated images show what was asked for: names, floors and intervals."""

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.evaluation import faithfulness
from jaxcxr.evaluation.extractors.xrv import PATHOLOGIES
from jaxcxr.evaluation.faithfulness import Scored
from jaxcxr.evaluation.metrics import BETTER, classification
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.phantoms.reports import LABELS
from jaxcxr.phantoms.truth import CLASSES

NAMES = ("Effusion", "Edema", "Hernia")


def scored(n, strength, seed, names=NAMES, rare=()):
    """Images whose scores grow with the truth."""
    draw = np.random.default_rng(seed)
    truth = draw.random((n, len(names))) < 0.3
    truth[:2] = [[True], [False]]
    for name in rare:
        truth[:, names.index(name)] = False
    scores = 0.3 + strength * truth + 0.1 * draw.standard_normal(truth.shape)
    return Scored(names, truth, scores, np.arange(n) // 2)


def by_name(rows):
    return {(row.metric, row.group): row for row in rows}


def test_phantoms_kinds_are_matched_with_torchxrayvisions_outputs():
    found = faithfulness.match(KINDS, PATHOLOGIES)
    assert dict(zip((KINDS[place] for place in found.asked), found.names, strict=True)) == {
        "effusion": "Effusion",
        "cardiomegaly": "Cardiomegaly",
        "pneumothorax": "Pneumothorax",
        "consolidation": "Consolidation",
        "nodule": "Nodule",
        "edema": "Edema",
    }
    assert [PATHOLOGIES[place] for place in found.outputs] == list(found.names)
    assert found.asked_alone == ("device",)
    assert len(found.outputs_alone) == 12


def test_chexperts_labels_are_matched_with_torchxrayvisions_outputs():
    found = faithfulness.match(LABELS, PATHOLOGIES)
    assert dict(zip((LABELS[place] for place in found.asked), found.names, strict=True)) == {
        name: {"Pleural Effusion": "Effusion"}.get(name, name)
        for name in LABELS
        if name not in ("No Finding", "Pleural Other", "Support Devices")
    }
    assert found.asked_alone == ("No Finding", "Pleural Other", "Support Devices")


def test_phantoms_kinds_are_matched_with_chexperts_labels():
    found = faithfulness.match(KINDS, LABELS)
    assert dict(zip((KINDS[place] for place in found.asked), found.names, strict=True)) == {
        "effusion": "Pleural Effusion",
        "cardiomegaly": "Cardiomegaly",
        "pneumothorax": "Pneumothorax",
        "consolidation": "Consolidation",
        "nodule": "Lung Lesion",
        "edema": "Edema",
        "device": "Support Devices",
    }
    assert faithfulness.match(CLASSES, CLASSES).names == CLASSES


@pytest.mark.parametrize(
    ("asked", "outputs", "names", "alone"),
    [
        (["Pleural Thickening"], ["Pleural_Thickening"], ("Pleural_Thickening",), ()),
        (["lung-opacity "], ["Lung Opacity"], ("Lung Opacity",), ()),
        (["nodule", "mass"], ["Lung Lesion"], (), ("nodule", "mass")),  # which of both it sees is not known
        (["nodule", "Lung Lesion"], ["Lung Lesion"], ("Lung Lesion",), ("nodule",)),
        (["Pleural Effusion", "effusion"], ["Effusion"], ("Effusion",), ("effusion",)),
        (["Lung Lesion"], ["Nodule", "Mass"], (), ("Lung Lesion",)),
    ],
)
def test_names_that_are_alike_are_told_apart(asked, outputs, names, alone):
    found = faithfulness.match(asked, outputs)
    assert (found.names, found.asked_alone) == (names, alone)


def test_judge_takes_the_columns_that_match():
    truth = np.array([[True, False, False], [False, True, False]])
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.6]])
    found, matched = faithfulness.scored(
        truth, ["device", "edema", "effusion"], scores, ["Effusion", "Hernia", "Edema"], ["a", "b"]
    )
    assert found.names == ("Effusion", "Edema")
    np.testing.assert_array_equal(found.truth, [[False, False], [False, True]])
    np.testing.assert_array_equal(found.scores, [[0.1, 0.5], [0.2, 0.6]])
    assert (matched.asked_alone, matched.outputs_alone) == (("device",), ("Hernia",))
    with pytest.raises(UserError, match=r"sees none of device, edema, effusion; its outputs are x"):
        faithfulness.scored(truth, ["device", "edema", "effusion"], scores[:, :1], ["x"], ["a", "b"])
    with pytest.raises(UserError, match=r"with 2 and 3 names"):
        faithfulness.scored(truth, ["device", "edema"], scores, ["a", "b", "c"], ["a", "b"])
    with pytest.raises(UserError, match=r"give bool and scores \(2, 3\)"):
        Scored(NAMES, truth, scores[:, :2], np.arange(2))


def test_rows_have_the_metrics_of_both_sets():
    generated, real = scored(200, 0.08, 1), scored(150, 0.15, 2)
    cuts = faithfulness.thresholds(scored(150, 0.15, 3))
    rows, left_out = faithfulness.faithfulness(generated, real, of="mine", classifier="xrv", cuts=cuts, resamples=200)
    assert left_out == []
    found = by_name(rows)
    assert len(found) == 6 * 4 + 1
    for place, name in enumerate(NAMES):
        for side, one in (("value", generated), ("floor", real)):
            truth, scores, cut = one.truth[:, place], one.scores[:, place], cuts[name]
            called = scores >= cut
            for metric, wanted in (
                ("auroc", classification.auroc(truth, scores)),
                ("accuracy", (truth == called).mean()),
                ("f1", 2 * (truth & called).sum() / (truth.sum() + called.sum())),
                ("pearson", np.corrcoef(truth, scores)[0, 1]),
                ("brier", ((truth - scores) ** 2).mean()),
                ("expected_calibration_error", classification.expected_calibration_error(truth, scores)),
            ):
                assert getattr(found[metric, f"finding={name}"], side) == pytest.approx(wanted, abs=1e-12)
    for metric in ("auroc", "accuracy", "f1", "pearson", "brier", "expected_calibration_error"):
        values = [found[metric, f"finding={name}"].value for name in NAMES]
        assert found[metric, ""].value == pytest.approx(np.mean(values))
    pooled = found["pearson_pooled", ""]
    assert pooled.value == pytest.approx(np.corrcoef(generated.truth.ravel(), generated.scores.ravel())[0, 1])
    assert pooled.floor == pytest.approx(np.corrcoef(real.truth.ravel(), real.scores.ravel())[0, 1])
    for row in rows:
        assert row.low <= row.value <= row.high
        assert row.floor is None or row.floor_low <= row.floor <= row.floor_high
        assert (row.set, row.extractor, row.n) == ("mine", "xrv", 200)
        assert BETTER[row.metric] == ("low" if row.metric in ("brier", "expected_calibration_error") else "high")
    assert found["auroc", ""].value < found["auroc", ""].floor


def test_intervals_are_of_prompts():
    one = scored(40, 0.1, 5)
    one = Scored(NAMES, one.truth, one.scores, np.arange(40))
    many = Scored(NAMES, *(np.repeat(part, 6, axis=0) for part in (one.truth, one.scores, one.units)))
    alone = Scored(NAMES, many.truth, many.scores, np.arange(240))
    widths = []
    for images in (one, many, alone):
        rows, _ = faithfulness.faithfulness(images, None, of="", classifier="", resamples=300)
        row = by_name(rows)["auroc", ""]
        widths.append(row.high - row.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.6 * widths[0]


def test_what_cannot_be_told_is_left_out_of_the_mean():
    names = (*NAMES, "Mass")
    generated, real = scored(80, 0.1, 1, names, rare=["Hernia"]), scored(60, 0.2, 2)
    rows, left_out = faithfulness.faithfulness(generated, real, of="mine", classifier="xrv", resamples=20)
    found = by_name(rows)
    assert ("auroc", "finding=Hernia") not in found
    assert not any(row.metric in ("accuracy", "f1") for row in rows)
    assert found["auroc", "finding=Mass"].floor is None
    for side in ("value", "floor"):
        values = [getattr(found["auroc", f"finding={name}"], side) for name in NAMES[:2]]
        assert getattr(found["auroc", ""], side) == pytest.approx(np.mean(values))
    assert left_out == [
        "mine: Hernia was asked of 0 of 80 images; AUROC needs images with it and without",
        "mine: Mass has no floor: no real image has it, or each",
    ]
    pooled = np.corrcoef(generated.truth[:, :2].ravel(), generated.scores[:, :2].ravel())[0, 1]
    assert found["pearson_pooled", ""].value == pytest.approx(pooled)


def test_scores_that_are_no_probabilities_have_no_calibration():
    one = scored(40, 0.1, 1)
    logits = Scored(NAMES, one.truth, one.scores - 1, one.units)
    rows, _ = faithfulness.faithfulness(logits, None, of="", classifier="", resamples=20)
    assert {row.metric for row in rows} == {"auroc", "pearson", "pearson_pooled"}


def test_an_order_of_findings_of_its_own_changes_nothing():
    generated, real = scored(50, 0.1, 1), scored(60, 0.2, 2)
    turned = Scored(NAMES[::-1], real.truth[:, ::-1], real.scores[:, ::-1], real.units)
    cuts = faithfulness.thresholds(turned)
    assert cuts == faithfulness.thresholds(real)
    ours, theirs = (
        faithfulness.faithfulness(generated, one, of="", classifier="", cuts=cuts, resamples=20)
        for one in (real, turned)
    )
    assert ours == theirs


def test_one_prompt_has_no_interval():
    one = scored(30, 0.1, 1)
    rows, _ = faithfulness.faithfulness(
        Scored(NAMES, one.truth, one.scores, np.zeros(30)), None, of="", classifier="", resamples=20
    )
    assert {(row.low, row.high, row.floor) for row in rows} == {(None, None, None)}


def test_scores_that_are_not_finite_are_refused():
    one = scored(30, 0.1, 1)
    one.scores[3, 1] = np.nan
    with pytest.raises(UserError, match=r"number 3 is nan"):
        faithfulness.faithfulness(one, None, of="", classifier="")
