import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.phantoms.generator import DEVICES, KINDS, Finding
from jaxcxr.phantoms.studies import PREVALENCE, phantom, sample_findings
from jaxcxr.phantoms.truth import CLASSES, GRADES, classes_of, grades, present

OFTEN = dict.fromkeys(PREVALENCE, 0.45) | {name: 0.25 for name in PREVALENCE if "effusion" in name}


def test_a_phantom_is_a_function_of_seed_and_index():
    one, again = phantom(3, 5, 64), phantom(3, 5, 64)
    assert one.findings == again.findings
    np.testing.assert_array_equal(one.image, again.image)
    assert phantom(3, 5, 128).findings == one.findings, "at another size it is the same phantom"
    others = [phantom(3, index, 64) for index in range(6, 12)] + [phantom(4, 5, 64)]
    assert all(np.abs(one.image.astype(int) - other.image).mean() > 2 for other in others)
    with pytest.raises(UserError, match="64 to 512"):
        phantom(3, 5, 32)


def test_every_finding_has_its_kind_side_size_and_a_mask_on_its_side():
    seen = set()
    for index in range(60):
        one = phantom(1, index, 64, prevalence=OFTEN)
        assert len(one.findings) == len(one.masks) == len(one.truth())
        for finding, mask, row in zip(one.findings, one.masks, one.truth(), strict=True):
            assert (mask.shape, mask.dtype) == ((64, 64), bool)
            x0, y0, x1, y1 = row["box"]
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert row == finding.as_dict() | {"box": row["box"]}
            if finding.side in ("left", "right") and finding.kind != "device":
                half = mask[:, 32:] if finding.side == "left" else mask[:, :32]
                assert half.sum() > 0.9 * mask.sum()
            seen.add(finding.kind)
    assert seen == set(KINDS)


def test_kinds_that_are_not_wanted_are_left_out_and_others_stay():
    for index in range(20):
        whole, without = phantom(1, index, 64), phantom(1, index, 64, kinds=[k for k in KINDS if k != "effusion"])
        assert not [f for f in without.findings if f.kind == "effusion"]
        assert {f for f in whole.findings if f.kind in ("edema", "cardiomegaly")} <= set(without.findings)


def test_a_phantom_without_one_finding_is_the_same_chest():
    changed = 0
    for index in range(30):
        one = phantom(2, index, 64, prevalence=OFTEN)
        for finding, mask in zip(one.findings, one.masks, strict=True):
            if finding.kind not in ("effusion", "consolidation", "device"):
                continue
            without = one.with_findings([other for other in one.findings if other is not finding])
            change = np.abs(one.image.astype(int) - without.image)
            assert change[~mask].mean() < 0.1 * change[mask].mean()
            changed += 1
    assert changed > 10


def test_contrast_is_of_each_class_where_it_lies():
    effusion, nodule = Finding("effusion", "bilateral", "large"), Finding("nodule", "left", zone="upper", mm=20)
    one = phantom(1, 0, 128).with_findings([effusion, nodule, Finding("edema", size="mild")])
    contrasts = one.contrasts()
    assert set(contrasts) == {"right effusion", "left effusion", "left nodule", "edema"}
    assert min(contrasts.values()) > 12
    assert one.contrasts(["nodule"]) == {"left nodule": contrasts["left nodule"]}
    alone = one.with_findings([effusion])
    others = [one.with_findings([Finding("effusion", side, "large")]).image.astype(int) for side in ("left", "right")]
    halves = [alone.masks[0] & half for half in _halves(128)]
    right, left = (np.abs(alone.image - other)[half].mean() for other, half in zip(others, halves, strict=True))
    assert alone.contrasts() == pytest.approx({"right effusion": right, "left effusion": left}, rel=0.02)


def _halves(size):
    right = np.zeros((size, size), bool)
    right[:, : size // 2] = True
    return right, ~right


def test_a_nodule_in_severe_edema_under_an_effusion_or_behind_the_heart_is_hidden():
    nodule = Finding("nodule", "left", zone="lower", mm=14)
    chest = phantom(1, 0, 128)
    assert chest.with_findings([nodule]).hidden() == set()
    assert chest.with_findings([nodule, Finding("edema", size="severe")]).hidden() == {"left nodule"}
    assert chest.with_findings([Finding("effusion", "left", "large"), nodule]).hidden() == {"left nodule"}
    assert chest.with_findings([Finding("effusion", "right", "large"), nodule]).hidden() == set()
    heart = Finding("cardiomegaly", size="severe")
    nodule = Finding("nodule", "left", zone="mid", mm=20)
    covered = [phantom(1, index, 64).with_findings([heart, nodule]) for index in range(24)]
    shares = np.array([one.masks[1].sum() / one.with_findings([nodule]).masks[0].sum() for one in covered])
    hidden = np.array([bool(one.hidden()) for one in covered])
    assert hidden[shares < 0.4].all(), "a sliver beside the heart"
    assert not hidden[shares > 0.7].any()
    assert 0 < ((shares > 0) & (shares < 0.4)).sum() < 12


def test_classes_and_grades_of_findings():
    found = [Finding("effusion", "bilateral", "large"), Finding("nodule", "left", zone="mid", mm=12)]
    found.append(Finding("device", "right", device="pacemaker"))
    names = ["right effusion", "left effusion", "left nodule", "right pacemaker"]
    assert [name for name, there in zip(CLASSES, present(found), strict=True) if there] == names
    assert dict(zip(GRADES, grades(found), strict=True)) == {
        "effusion": 2,
        "cardiomegaly": -1,
        "pneumothorax": -1,
        "edema": -1,
        "consolidation": -1,
        "nodule": 1,
    }


def test_every_finding_that_is_drawn_has_a_class():
    studies = [sample_findings(np.random.default_rng(seed), KINDS, OFTEN) for seed in range(800)]
    drawn = {name for findings in studies for finding in findings for name in classes_of(finding)}
    assert drawn == set(CLASSES)
    assert len(CLASSES) == len(set(CLASSES)) == 10 + 2 + 2 * (len(DEVICES) - 2)
