import numpy as np
import pytest

from jaxcxr.phantoms.scores import Rate, score, score_grades, wilson
from jaxcxr.phantoms.truth import CLASSES, GRADES


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Values of Newcombe, Statist. Med. 17:857 (1998), table I, score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(hits, total, low, high):
    assert wilson(hits, total) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_of_nothing_and_of_everything():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 50)
    assert high == pytest.approx(1.0)
    assert 0.9 < low < 0.95
    assert Rate(0, 0).as_dict()["share"] is None


def test_sensitivity_is_of_those_that_have_it_and_specificity_of_the_others():
    there = np.zeros((5, len(CLASSES)), bool)
    seen = there.copy()
    there[:3, 2], seen[1:4, 2] = True, True
    one = score(there, seen)[CLASSES[2]]
    assert (one.sensitivity, one.specificity) == (Rate(2, 3), Rate(1, 2))
    known = np.ones_like(there)
    known[0, 2] = known[4, 2] = False
    assert score(there, seen, known)[CLASSES[2]].sensitivity == Rate(2, 2)
    assert score(there, seen, known)[CLASSES[2]].specificity == Rate(0, 1)
    assert score(there, seen)[CLASSES[0]].sensitivity == Rate(0, 0)
    assert score(there, seen)[CLASSES[0]].specificity == Rate(5, 5)


def test_grades_count_where_the_kind_is_there():
    there, seen = np.full((3, len(GRADES)), -1), np.zeros((3, len(GRADES)), int)
    there[:2, 0] = (0, 2)
    rates = score_grades(there, seen)
    assert rates["effusion"] == Rate(1, 2)
    assert rates["edema"] == Rate(0, 0)
