"""Radiology reports for phantom studies: paraphrased facts, MIMIC-CXR's text layout, CheXpert labels.

The impression states every positive finding with its side and size, so it can serve as the prompt on its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxcxr.phantoms.generator import Finding

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The CheXpert labels in the column order of MIMIC-CXR-JPG."""

LABELS_OF = {
    "effusion": ("Pleural Effusion",),
    "cardiomegaly": ("Cardiomegaly",),
    "pneumothorax": ("Pneumothorax",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "nodule": ("Lung Lesion",),
    "edema": ("Edema",),
    "device": ("Support Devices",),
}

IMPRESSION = {
    "effusion": (
        "{Size} {side} pleural effusion.",
        "{Side} pleural effusion, {size}.",
        "There is a {size} {side} pleural effusion.",
        "{Size} pleural effusion on the {side}.",
        "{Size}-sized {side} pleural effusion.",
        "{Side} pleural effusion that is {size}.",
        "Pleural effusion on the {side}, {size} in size.",
    ),
    "bilateral effusion": (
        "{Size} bilateral pleural effusions.",
        "Bilateral pleural effusions, {size}.",
        "There are {size} bilateral pleural effusions.",
        "Bilateral {size} pleural effusions.",
        "{Size}-sized bilateral pleural effusions.",
        "Bilateral pleural effusions that are {size}.",
        "Bilateral pleural effusions, {size} in size.",
    ),
    "cardiomegaly": (
        "{Size} cardiomegaly.",
        "{Size} enlargement of the heart.",
        "Cardiomegaly, {size}.",
        "There is {size} cardiac enlargement.",
        "The heart is enlarged, {size}.",
        "Enlarged cardiac silhouette, {size} in degree.",
    ),
    "pneumothorax": (
        "{Size} {side} pneumothorax.",
        "{Side} pneumothorax, {size}.",
        "There is a {size} {side} pneumothorax.",
        "{Size} pneumothorax on the {side}.",
        "{Side} pneumothorax that is {size}.",
        "Pneumothorax on the {side}, {size} in size.",
    ),
    "consolidation": (
        "{Side} {zone} zone consolidation.",
        "Consolidation in the {side} {zone} zone.",
        "Focal consolidation, {side} {zone} lung zone.",
        "{Side} {zone} lung consolidation.",
    ),
    "nodule": (
        "{mm} mm {side} {zone} zone nodule.",
        "{Side} {zone} zone nodule measuring {mm} mm.",
        "{mm} mm nodule in the {side} {zone} lung.",
        "Nodule of {mm} mm, {side} {zone} zone.",
        "{Side}-sided nodule in the {zone} lung, {mm} mm in size.",
        "Lung nodule, {side} {zone} zone, of {mm} mm.",
    ),
    "edema": (
        "{Size} pulmonary edema.",
        "Pulmonary edema, {size}.",
        "{Size} bilateral pulmonary edema.",
        "There is {size} pulmonary edema.",
        "Pulmonary edema that is {size}.",
    ),
    "endotracheal tube": (
        "Endotracheal tube in place.",
        "Endotracheal tube in standard position.",
        "ET tube above the carina.",
        "The endotracheal tube is well positioned.",
        "Endotracheal tube.",
    ),
    "nasogastric tube": (
        "Nasogastric tube in the stomach.",
        "NG tube tip below the diaphragm.",
        "Enteric tube ends in the stomach.",
        "Nasogastric tube in standard position.",
        "NG tube ends in the stomach.",
        "NG tube.",
    ),
    "central line": (
        "{Side} central line in the SVC.",
        "{Side} central venous catheter in place.",
        "{Side} subclavian line ends in the SVC.",
        "Central line from the {side}, tip in SVC.",
        "{Side} central line.",
    ),
    "pacemaker": (
        "{Side} chest wall pacemaker.",
        "{Side}-sided pacemaker in place.",
        "Pacemaker on the {side} with ventricular lead.",
        "{Side} pectoral pacemaker, lead in place.",
        "{Side} pacemaker with one lead.",
        "{Side} pacemaker.",
    ),
}

DETAIL = {
    "effusion": (
        "A {size} {side} pleural effusion layers above the hemidiaphragm.",
        "The {side} costophrenic angle is blunted by a {size} pleural effusion.",
        "There is opacification at the {side} base with a meniscus, a {size} pleural effusion.",
        "{Side} pleural fluid is present, {size} in amount.",
    ),
    "bilateral effusion": (
        "{Size} bilateral pleural effusions layer above both hemidiaphragms.",
        "Both costophrenic angles are blunted by {size} bilateral pleural effusions.",
        "There is opacification at both bases with menisci, {size} bilateral pleural effusions.",
        "Bilateral pleural fluid is present, {size} in amount.",
    ),
    "cardiomegaly": (
        "The cardiac silhouette shows {size} enlargement.",
        "There is {size} cardiomegaly.",
        "The heart is enlarged, {size} in degree.",
        "Heart size demonstrates {size} cardiomegaly.",
    ),
    "pneumothorax": (
        "A {size} {side} pneumothorax is seen with a visible pleural line.",
        "A pleural line on the {side} marks a {size} pneumothorax.",
        "There is a {size} pneumothorax on the {side}, without lung markings laterally.",
        "Lung markings are absent at the {side} lateral chest, a {size} pneumothorax.",
    ),
    "consolidation": (
        "There is consolidation in the {side} {zone} zone.",
        "Focal airspace opacity in the {side} {zone} zone is consistent with consolidation.",
        "The {side} {zone} lung zone is consolidated.",
        "A patchy consolidation occupies the {side} {zone} zone.",
    ),
    "nodule": (
        "A {mm} mm nodule projects over the {side} {zone} zone.",
        "There is a rounded {mm} mm opacity in the {side} {zone} lung, a nodule.",
        "The {side} {zone} zone contains a nodule of {mm} mm.",
        "A well-defined {side} {zone} zone nodule measures {mm} mm.",
    ),
    "edema": (
        "Perihilar haze and engorged vessels indicate {size} pulmonary edema.",
        "There is {size} pulmonary edema with vascular indistinctness.",
        "Bilateral perihilar opacities reflect {size} pulmonary edema.",
        "The pulmonary vasculature is engorged, with {size} edema.",
    ),
}

NEGATIVE = {
    "effusion": (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "No evidence of pleural effusion.",
        "No effusion on either side.",
        "The costophrenic angles are sharp, without effusion.",
    ),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no pneumothorax.",
        "No evidence of pneumothorax.",
        "No pneumothorax is seen.",
    ),
    "effusion and pneumothorax": (
        "No pleural effusion or pneumothorax.",
        "There is no pleural effusion or pneumothorax.",
        "No evidence of pneumothorax or pleural effusion.",
        "Neither pleural effusion nor pneumothorax is seen.",
    ),
    "cardiomegaly": (
        "The heart is normal in size.",
        "Heart size is normal.",
        "The cardiac silhouette is not enlarged.",
        "Normal heart size.",
    ),
    "consolidation": (
        "No focal consolidation.",
        "There is no focal consolidation.",
        "No consolidation is seen.",
        "No evidence of focal consolidation.",
    ),
    "edema": (
        "No pulmonary edema.",
        "There is no pulmonary edema.",
        "No evidence of edema.",
        "The pulmonary vasculature is normal, without edema.",
    ),
}

ACUTE = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "No acute findings.",
)
NORMAL = (*ACUTE, "Normal chest radiograph.")
BONES = (
    "The osseous structures are intact.",
    "No acute osseous abnormality.",
    "Bony structures are unremarkable.",
    "The imaged bones are normal.",
)
PNEUMONIA = (
    "This may represent pneumonia.",
    "Pneumonia cannot be excluded.",
    "Possible pneumonia.",
    "Findings are concerning for possible pneumonia.",
)
INDICATIONS = (
    "___ year old patient with shortness of breath.",
    "___F with cough and fever, evaluate for pneumonia.",
    "___M with chest pain.",
    "___ year old patient, evaluate for interval change.",
    "History: ___ with dyspnea // effusion?",
)


@dataclass
class Report:
    """Sections of one report and what they say of each label; `impression` is empty in findings-only ones."""

    findings: str
    impression: str
    negated: set[str] = field(default_factory=set)
    """Kinds the text denies."""
    uncertain: set[str] = field(default_factory=set)
    """Labels the text hedges."""


def write_report(
    findings: Sequence[Finding], rng: np.random.Generator, impression: bool = True, unmentioned: Collection[str] = ()
) -> Report:
    """Word a study's findings; without `impression` the report has its findings section only.

    The kinds in `unmentioned`, of which there is no finding, are not denied either.
    """
    kinds = {f.kind for f in findings}
    silent = kinds.union(unmentioned)
    report = Report("", "")
    sentences = [word_finding(DETAIL, f, rng) for f in findings if f.kind != "device"]
    sentences += [word_finding(IMPRESSION, f, rng) for f in findings if f.kind == "device"]
    if "consolidation" in kinds and rng.random() < 0.5:
        sentences.append(_pick(PNEUMONIA, rng))
        report.uncertain.add("Pneumonia")
    absent = [kind for kind in ("cardiomegaly", "consolidation", "edema") if kind not in silent]
    stated = [kind for kind in absent if rng.random() < 0.75]
    sentences += [_pick(NEGATIVE[kind], rng) for kind in stated]
    denial, denied = _deny_pleural(silent, rng, both=0.9, one=0.8)
    report.negated.update(stated, denied)
    report.findings = " ".join([*sentences, *denial, _pick(BONES, rng)])
    if impression:
        report.impression, denied = write_impression(findings, rng, unmentioned)
        report.negated.update(denied)
    return report


def write_impression(
    findings: Sequence[Finding], rng: np.random.Generator, unmentioned: Collection[str] = ()
) -> tuple[str, set[str]]:
    """Impression naming every finding with its qualifiers, and the kinds that it denies, none of `unmentioned`.

    Three in four impressions of a chest without effusion say so.
    """
    kinds = {f.kind for f in findings}
    positive = [word_finding(IMPRESSION, findings[i], rng) for i in rng.permutation(len(findings))]
    silent = kinds.union(unmentioned)
    denial, denied = _deny_pleural(silent, rng, both=0.75, one=0.75 if "effusion" not in silent else 0.3)
    clear = [_pick(ACUTE if kinds else NORMAL, rng)] if kinds <= {"device"} else []
    return " ".join([*positive, *(clear + denial if rng.random() < 0.5 else denial + clear)]), denied


def effusion_prompt(side: str, rng_or_index: np.random.Generator | int, size: str = "") -> str:
    """Impression asking for effusion `side`: none, left, right or both (worded bilateral).

    An index picks a fixed paraphrase, a generator a random one. `size` is small, moderate or large; empty picks
    one of them. With none, the impression always denies an effusion.

    Raises:
        KeyError: `side` is none of the four.
    """
    rng = rng_or_index if isinstance(rng_or_index, np.random.Generator) else np.random.default_rng(rng_or_index)
    name = {"none": "", "left": "left", "right": "right", "both": "bilateral"}[side]
    if name:
        size = size or _pick(("small", "moderate", "large"), rng)
        return word_finding(IMPRESSION, Finding("effusion", name, size), rng)
    denial = _pick(NEGATIVE["effusion" if rng.random() < 0.5 else "effusion and pneumothorax"], rng)
    return f"{_pick(NORMAL, rng)} {denial}"


def report_text(
    report: Report, examination: str, comparison: str, rng: np.random.Generator, unmentioned: Collection[str] = ()
) -> str:
    """The report file: indented FINAL REPORT, one leading space a line, one space on blank lines.

    The indication asks for none of `unmentioned`.
    """
    indications = [text for text in INDICATIONS if not any(kind in text for kind in unmentioned)]
    sections = [
        ("EXAMINATION", examination),
        ("INDICATION", _pick(indications, rng)),
        ("COMPARISON", comparison),
        ("FINDINGS", report.findings),
        ("IMPRESSION", report.impression),
    ]
    lines = [" " * 33 + "FINAL REPORT"]
    for header, body in sections:
        if not body:
            continue
        own_line = header in ("FINDINGS", "IMPRESSION")
        text = body if own_line else f"{header}:  {body}"
        lines += ([f" {header}: ", " "] if own_line else []) + [f" {line}" for line in textwrap.wrap(text, 78)] + [" "]
    return "\n".join(lines[:-1]) + "\n"


def true_labels(findings: Sequence[Finding]) -> dict[str, float]:
    """What the picture shows: 1.0 or 0.0 for every label that the phantom can draw, and No Finding."""
    positive = {label for f in findings for label in LABELS_OF[f.kind]}
    drawn = {label for labels in LABELS_OF.values() for label in labels}
    truth = {label: float(label in positive) for label in LABELS if label in drawn}
    return truth | {"No Finding": float(positive <= {"Support Devices"})}


def mentioned_labels(findings: Sequence[Finding], report: Report) -> dict[str, float | None]:
    """What the report says: 1.0 stated, 0.0 denied, -1.0 hedged, None not mentioned."""
    labels: dict[str, float | None] = dict.fromkeys(LABELS)
    labels.update((LABELS_OF[kind][0], 0.0) for kind in report.negated)
    labels.update((label, -1.0) for label in report.uncertain)
    labels.update((label, 1.0) for f in findings for label in LABELS_OF[f.kind])
    if all(f.kind == "device" for f in findings):
        labels["No Finding"] = 1.0
    return labels


def _deny_pleural(silent: set[str], rng: np.random.Generator, both: float, one: float) -> tuple[list[str], set[str]]:
    """Deny the pleural findings that are not `silent`, with the given chances for two and for one of them."""
    absent = {"effusion", "pneumothorax"} - silent
    if not absent or rng.random() >= (both if len(absent) == 2 else one):
        return [], set()
    if len(absent) == 1:
        return [_pick(NEGATIVE[next(iter(absent))], rng)], absent
    if rng.random() < 0.4:
        return [_pick(NEGATIVE["effusion"], rng)], {"effusion"}
    return [_pick(NEGATIVE["effusion and pneumothorax"], rng)], absent


def word_finding(table: Mapping[str, tuple[str, ...]], finding: Finding, rng: np.random.Generator) -> str:
    """A sentence out of `table`, as `IMPRESSION` is, that states a finding with its qualifiers."""
    key = finding.device or ("bilateral effusion" if finding.side == "bilateral" else finding.kind)
    words = {"side": finding.side, "size": finding.size, "zone": finding.zone}
    capital = {name.capitalize(): word.capitalize() for name, word in words.items()}
    return _pick(table[key], rng).format(**words, **capital, mm=finding.mm)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
