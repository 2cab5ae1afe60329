"""What a phantom shows, as classes that a classifier answers and prompts ask for.

A class is a kind of finding on a side, as "left effusion"; a bilateral effusion is both of its sides. A device is named
by its device, as "right pacemaker". A grade is a further attribute of a finding that is there: its size or its zone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcxr.phantoms.generator import DEVICES, KINDS, Finding

SIDES = ("right", "left")
CLASSES = (
    "right effusion",
    "left effusion",
    "cardiomegaly",
    "right pneumothorax",
    "left pneumothorax",
    "right consolidation",
    "left consolidation",
    "right nodule",
    "left nodule",
    "edema",
    "endotracheal tube",
    "nasogastric tube",
    "right central line",
    "left central line",
    "right pacemaker",
    "left pacemaker",
)
_AMOUNTS, _DEGREES, _ZONES = ("small", "moderate", "large"), ("mild", "moderate", "severe"), ("upper", "mid", "lower")
GRADES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "effusion": ("size", _AMOUNTS),
    "cardiomegaly": ("size", _DEGREES),
    "pneumothorax": ("size", _AMOUNTS),
    "edema": ("size", _DEGREES),
    "consolidation": ("zone", _ZONES),
    "nodule": ("zone", _ZONES),
}
"""By kind: the attribute of a `Finding` that grades it, and that attribute's values."""


NAMES = (*KINDS[:-1], *DEVICES)
"""What classes are named by: the kinds, with the devices in place of the last."""


def name_of(finding: Finding) -> str:
    """The finding's name in a class: its device, or its kind."""
    return finding.device or finding.kind


def classes_of(finding: Finding) -> tuple[str, ...]:
    """The classes that a finding belongs to, two for a bilateral effusion and else one."""
    sides = SIDES if finding.side == "bilateral" else (finding.side,)
    return tuple(f"{side} {name_of(finding)}".strip() for side in sides)


def kind_of(name: str) -> str:
    """The kind that a class is of."""
    last = name.removeprefix("right ").removeprefix("left ")
    return last if last in KINDS else "device"


def present(findings: Sequence[Finding]) -> np.ndarray:
    """Which of `CLASSES` the findings make up, bool (16,)."""
    found = {name for finding in findings for name in classes_of(finding)}
    return np.array([name in found for name in CLASSES])


def grades(findings: Sequence[Finding]) -> np.ndarray:
    """The index of each kind's grade in the order of `GRADES`, int (6,); -1 where the kind or its grade is not told.

    A study has at most one finding of a kind.
    """
    values = dict.fromkeys(GRADES, -1)
    for finding in findings:
        if finding.kind in GRADES:
            attribute, names = GRADES[finding.kind]
            grade = getattr(finding, attribute)
            values[finding.kind] = names.index(grade) if grade else -1
    return np.array(list(values.values()))
