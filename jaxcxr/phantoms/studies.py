"""Phantom studies: which findings a study has, and any number of phantoms with their ground truth.

`phantom(seed, index)` is the picture of one patient together with everything that is known of it. It needs no folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxcxr.phantoms.anatomy import FIELD_MM
from jaxcxr.phantoms.generator import DEVICES, KINDS, Drawing, Finding, Patient, draw
from jaxcxr.phantoms.truth import SIDES, classes_of, kind_of

PORTABLE = 0.3
"""Share of frontal views that are AP."""
FAINT: Mapping[str, float] = {"nodule": 36.0}
"""By kind: the mean contrast in gray levels below which it cannot be seen, as a nodule in severe edema."""
PREVALENCE: Mapping[str, float] = {
    "left effusion": 0.2,
    "right effusion": 0.2,
    "bilateral effusion": 0.2,
    "cardiomegaly": 0.22,
    "pneumothorax": 0.10,
    "consolidation": 0.14,
    "nodule": 0.10,
    "edema": 0.10,
    "device": 0.22,
}
"""Share of studies with each finding; what the three effusions leave over has none."""


@dataclass(frozen=True)
class Phantom:
    """One radiograph and its ground truth: `findings[i]` lies where `masks[i]`, bool (size, size), is true.

    `image` is uint8 (size, size), bright for dense.
    """

    patient: Patient
    findings: tuple[Finding, ...]
    view: str
    drawing: Drawing

    @property
    def image(self) -> np.ndarray:
        """The picture, uint8 (size, size)."""
        return self.drawing.image

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """Where each finding lies, bool (size, size) each."""
        return self.drawing.masks

    def truth(self) -> list[dict[str, Any]]:
        """What is known of each finding as JSON values: kind, the qualifiers that apply, and its pixel box."""
        boxes = self.drawing.boxes
        return [f.as_dict() | {"box": list(box)} for f, box in zip(self.findings, boxes, strict=True)]

    def with_findings(self, findings: Sequence[Finding]) -> Phantom:
        """The same patient in the same pose and exposure with other findings; nothing else changes."""
        drawing = draw(self.patient, 0, findings, len(self.image), self.view)
        return replace(self, findings=tuple(findings), drawing=drawing)

    def contrasts(self, kinds: Sequence[str] = KINDS) -> dict[str, float]:
        """How well each class of `truth.CLASSES` that is there, and of `kinds`, can be seen: its mean contrast.

        That is the mean, over the pixels where the class lies, of the gray levels by which the picture differs from
        the same one without it. A nodule's mean is over its whole disc, of which the heart may cover a part.
        """
        found = {}
        for finding, mask in zip(self.findings, self.masks, strict=True):
            for name, rest in _without(finding) if finding.kind in kinds else ():
                others = [rest if other is finding else other for other in self.findings]
                without = self.with_findings([other for other in others if other])
                own = mask & ~without.masks[self.findings.index(finding)] if rest else mask
                change = np.abs(self.image.astype(int) - without.image)[own].sum()
                disc = math.pi * (finding.mm / 2 / FIELD_MM * len(mask)) ** 2
                found[name] = float(change / max(own.sum(), disc, 1.0))
        return found

    def hidden(self) -> set[str]:
        """The classes that are there and too faint to be seen, by `FAINT`."""
        if len(self.findings) < 2:
            return set()
        return {name for name, contrast in self.contrasts(tuple(FAINT)).items() if contrast < FAINT[kind_of(name)]}


def phantom(
    seed: int,
    index: int,
    size: int = 128,
    kinds: Sequence[str] = KINDS,
    prevalence: Mapping[str, float] | None = None,
) -> Phantom:
    """Phantom number `index` of `seed`, `size` by `size` pixels: patient, findings and view are a function of both.

    It has findings of `kinds` alone, at `prevalence`, which is `PREVALENCE` unless given. These are not the studies of
    the tree of that seed, though patient `index` is the same patient.

    Raises:
      UserError: `size` is outside 64 to 512.
    """
    rng = np.random.default_rng([seed, index, 2**31 + 2])
    findings = tuple(sample_findings(rng, kinds, PREVALENCE if prevalence is None else prevalence))
    view = "AP" if rng.random() < PORTABLE else "PA"
    patient = Patient(seed, index)
    return Phantom(patient, findings, view, draw(patient, 0, findings, size, view))


def _without(finding: Finding) -> list[tuple[str, Finding | None]]:
    """Each class of a finding, with what is left of the finding without it."""
    classes = classes_of(finding)
    if len(classes) == 1:
        return [(classes[0], None)]
    right, left = (replace(finding, side=side) for side in SIDES)
    return [(classes[0], left), (classes[1], right)]


def sample_findings(
    rng: np.random.Generator,
    kinds: Sequence[str] = KINDS,
    prevalence: Mapping[str, float] = PREVALENCE,
) -> list[Finding]:
    """Draw one study's findings from those named in `kinds`, at the given prevalences.

    A finding that another would hide (a lower-zone lesion under an effusion, a lesion in a collapsed lung) is
    left out. Every kind draws the same numbers whether or not it is wanted, so restricting `kinds` removes
    findings and changes none.
    """
    found: list[Finding] = []
    for kind in KINDS:
        own = np.random.default_rng(rng.integers(2**63))
        finding = _sample_effusion(own, prevalence) if kind == "effusion" else None
        if kind != "effusion" and own.random() < prevalence.get(kind, 0.0):
            finding = _sample_one(kind, own)
        if finding and kind in kinds and not any(hides(other, finding) for other in found):
            found.append(finding)
    return found


def _sample_effusion(rng: np.random.Generator, prevalence: Mapping[str, float]) -> Finding | None:
    at = rng.random()
    for side in ("left", "right", "bilateral"):
        at -= prevalence.get(f"{side} effusion", 0.0)
        if at < 0:
            return Finding("effusion", side, str(rng.choice(["small", "moderate", "large"], p=[0.3, 0.4, 0.3])))
    return None


def _sample_one(kind: str, rng: np.random.Generator) -> Finding:
    side = str(rng.choice(["left", "right"]))
    degree = str(rng.choice(["mild", "moderate", "severe"]))
    zone = str(rng.choice(["upper", "mid", "lower"]))
    if kind in ("cardiomegaly", "edema"):
        return Finding(kind, size=degree)
    if kind == "pneumothorax":
        return Finding(kind, side, size=str(rng.choice(["small", "moderate", "large"])))
    if kind == "consolidation":
        return Finding(kind, side, zone=zone)
    if kind == "nodule":
        return Finding(kind, side, zone=zone, mm=int(rng.integers(10, 31)))
    device = str(rng.choice(DEVICES))
    return Finding(kind, side if device in ("central line", "pacemaker") else "", device=device)


def hides(other: Finding, finding: Finding) -> bool:
    """Whether a finding would be hidden by an `other` one, whose kind comes before its own in `KINDS`."""
    same_side = other.side in (finding.side, "bilateral")
    if finding.kind == "pneumothorax":
        return other.kind == "effusion" and same_side and other.size == "large"
    if finding.kind not in ("consolidation", "nodule") or not same_side:
        return other.kind == "cardiomegaly" and other.size == "severe" and finding.zone == "lower"
    if other.kind == "effusion":
        return finding.zone == "lower" or other.size == "large"
    return other.kind in ("pneumothorax", "consolidation")
