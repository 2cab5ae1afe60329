"""The verdict follows its criteria and nothing else."""

import math

import pytest

from jaxcxr.audit.calibrate import Share, Threshold
from jaxcxr.audit.copying import Exchange
from jaxcxr.audit.membership import Attack
from jaxcxr.audit.similarity import Similarity
from jaxcxr.audit.verdict import conclude
from jaxcxr.phantoms.scores import Rate


def similarity(low=0.0, p=0.5, recall=90):
    share = Share(0.1, low, 0.2)
    found = Exchange(9, 10, 0.5, p)
    return Similarity(
        extractor="x",
        digest="",
        threshold=Threshold(0.9, 0.01, 1, 300),
        recalls={"jpeg": Rate(recall, 100), "flip": Rate(recall, 100)},
        flagged=Rate(10, 100),
        share=share,
        exchange=found,
        exchange_flagged=found,
        z_u=0,
        c_t=0,
        authenticity=1,
        percentiles={},
        ratio={},
        low_ratio=Rate(0, 100),
        places=[],
        pairs=[],
    )


def attack(low):
    return Attack("loss", low + 0.05, low, low + 0.1, {}, 100, 100)


@pytest.mark.parametrize(
    ("similarities", "attacks", "wanted"),
    [
        ([similarity(0.01, 0.001)], [], "flagged"),
        ([similarity(0.01, 0.02)], [], "not flagged"),
        ([similarity(0.0, 0.001)], [], "not flagged"),
        ([similarity(math.nan, 0.001, recall=5)], [], "inconclusive"),
        ([similarity(), similarity(0.01, 0.001)], [], "flagged"),
        ([similarity(recall=40), similarity(recall=60)], [], "not flagged"),
        ([similarity(recall=40)], [attack(0.61)], "flagged"),
        ([similarity()], [attack(0.59)], "not flagged"),
    ],
)
def test_criteria(similarities, attacks, wanted):
    found = conclude(similarities, attacks)
    assert found.verdict == wanted
    assert found.reasons
