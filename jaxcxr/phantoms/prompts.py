"""Prompts that ask for known findings, alone and in pairs, in wordings that no report of the generator has.

A prompt row is {"prompt", "asked", "denied"}: the findings asked for, each with the qualifiers that apply, and the
kinds that the prompt denies. A model that was trained on the generator's reports has seen their sentences; a held-out
wording tests whether it knows their words.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.files import replace_file
from jaxcxr.phantoms.generator import DEVICES, KINDS, Finding
from jaxcxr.phantoms.reports import IMPRESSION, effusion_prompt, word_finding
from jaxcxr.phantoms.studies import hides
from jaxcxr.phantoms.truth import GRADES, NAMES, name_of

EFFUSIONS = ("none", "left", "right", "both")
"""The sides that a prompt for an effusion asks for."""

HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "effusion": (
        "Pleural effusion, {size}, {side}.",
        "{Size} {side}-sided pleural effusion.",
        "{Side} pleural effusion, which is {size}.",
    ),
    "bilateral effusion": (
        "Pleural effusions, {size}, bilateral.",
        "{Size} pleural effusions on both sides.",
        "Bilateral pleural effusions, which are {size}.",
    ),
    "cardiomegaly": (
        "Enlarged heart, {size}.",
        "The heart shows {size} enlargement.",
        "Cardiomegaly, which is {size}.",
    ),
    "pneumothorax": (
        "Pneumothorax, {size}, {side}.",
        "{Size} {side}-sided pneumothorax.",
        "{Side} pneumothorax, which is {size}.",
    ),
    "consolidation": (
        "Consolidation, {side} {zone} zone.",
        "{Side} {zone} zone airspace consolidation.",
        "{Side}-sided consolidation in the {zone} zone.",
    ),
    "nodule": (
        "Nodule, {mm} mm, {side} {zone} zone.",
        "{Side} {zone} lung nodule of {mm} mm.",
        "{Side}-sided {mm} mm nodule in the {zone} zone.",
    ),
    "edema": (
        "Edema, {size}, pulmonary.",
        "Bilateral pulmonary edema, {size}.",
        "Pulmonary edema, which is {size}.",
    ),
    "endotracheal tube": (
        "ET tube in place.",
        "Endotracheal tube is present.",
        "Endotracheal tube tip above the carina.",
    ),
    "nasogastric tube": (
        "NG tube in place.",
        "Nasogastric tube is present.",
        "Enteric tube in standard position.",
    ),
    "central line": (
        "{Side}-sided central venous catheter.",
        "Central line on the {side}.",
        "{Side} subclavian central line is present.",
    ),
    "pacemaker": (
        "{Side}-sided chest wall pacemaker.",
        "Pacemaker, {side} chest wall.",
        "{Side} pacemaker is present.",
    ),
}
"""By name, or as in `reports.IMPRESSION`: sentences that ask for a finding."""

_SIDES: Mapping[str, tuple[str, ...]] = {
    "effusion": ("left", "right", "bilateral"),
    **dict.fromkeys(("pneumothorax", "consolidation", "nodule", "central line", "pacemaker"), ("left", "right")),
}
_MM = range(10, 31)


@dataclass(frozen=True)
class Asked:
    """What a picture was asked to show, or a phantom truly shows: findings, and the kinds that are denied."""

    findings: tuple[Finding, ...]
    denied: tuple[str, ...] = ()

    @property
    def kinds(self) -> set[str]:
        """The kinds that something is known of."""
        return {finding.kind for finding in self.findings} | set(self.denied)

    def check(self, where: str) -> Asked:
        """Itself; a size or a zone may be left open.

        Raises:
          UserError: a finding does not exist, or a kind is named twice.
        """
        for finding in self.findings:
            names = [name for name in NAMES if name == name_of(finding)]
            if not any(_allows(finding, one) for name in names for one in _variants(name)):
                said = " ".join(str(value) for value in finding.as_dict().values())[:60]
                raise UserError(f"{where}: no phantom has {said!r}; {_offer(names or NAMES)}")
        for kind in self.denied:
            if kind not in KINDS:
                raise UserError(f"{where}: denies {kind[:20]!r}; choose from {', '.join(KINDS)}")
        named = [finding.kind for finding in self.findings]
        if twice := [kind for kind in named if named.count(kind) > 1 or kind in self.denied]:
            raise UserError(f"{where}: names {twice[0]} twice; a phantom has a kind once, and bilateral is a side")
        return self


def parse_asked(text: str) -> list[Finding]:
    """The findings of a comma list such as "left effusion, severe cardiomegaly, device"; "all" is every one.

    A side, a size or a zone that an entry does not give stands for each of them: "nodule" is six findings, and "device"
    every device on every side.

    Raises:
      UserError: a finding does not exist, or not on that side or of that size.
    """
    findings: list[Finding] = []
    for entry in filter(None, (" ".join(part.split()).lower() for part in text.split(","))):
        findings += (found for found in _entry(entry) if found not in findings)
    if not findings:
        raise UserError(f"--ask {text!r}: names no finding; {_offer()}")
    return findings


def _entry(entry: str) -> Iterator[Finding]:
    if entry == "all":
        yield from itertools.chain.from_iterable(_variants(name) for name in NAMES)
        return
    name = next((name for name in (*NAMES, "device") if entry == name or entry.endswith(f" {name}")), None)
    if name is None:
        raise UserError(f"--ask {entry!r}: no such finding; {_offer()}")
    words = entry.removesuffix(name).split()
    named = DEVICES if name == "device" else (name,)
    found = [
        finding
        for one in named
        for finding in _variants(one)
        if all(word in (finding.side, finding.size, finding.zone) for word in words)
    ]
    if not found:
        raise UserError(f"--ask {entry!r}: {name} has no {' '.join(words)!r}; {_offer(named)}")
    yield from found


def _variants(name: str) -> Iterator[Finding]:
    """Every finding of that name, but for a nodule's diameter."""
    kind = "device" if name in DEVICES else name
    attribute, values = GRADES.get(kind, ("", ("",)))
    for side in _SIDES.get(name, ("",)):
        for value in values:
            grade: dict[str, Any] = {attribute: value} if attribute else {}
            yield Finding(kind, side, device=name if kind == "device" else "", **grade)


def _allows(finding: Finding, variant: Finding) -> bool:
    """Whether a finding is that variant, or says less of it."""
    size, zone = finding.size or variant.size, finding.zone or variant.zone
    return replace(finding, size=size, zone=zone, mm=0) == variant


def _offer(names: Sequence[str] = NAMES) -> str:
    """What exists, in a line: "ask for [small|moderate|large] [left|right] pneumothorax, …"."""
    said = []
    for name in names:
        grades = GRADES.get(name, ("", ()))[1]
        words = [f"[{'|'.join(values)}]" for values in (grades, _SIDES.get(name, ())) if values]
        said.append(" ".join([*words, name]))
    return f"ask for {', '.join(said)}"


def singles(findings: Sequence[Finding], count: int, rng: np.random.Generator) -> Iterator[tuple[Finding, ...]]:
    """`count` findings, each name in turn, each in a shuffled order of its sides and sizes."""
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        by_name.setdefault(name_of(finding), []).append(finding)
    orders = [_rounds(of, rng) for of in by_name.values()]
    for index in range(count):
        yield (_measured(next(orders[index % len(orders)]), rng),)


def pairs(findings: Sequence[Finding], count: int, rng: np.random.Generator) -> Iterator[tuple[Finding, ...]]:
    """`count` pairs of two kinds, none of which hides the other, each pair of names in turn.

    Raises:
      UserError: no two of the findings go together.
    """
    by_names: dict[tuple[str, str], list[tuple[Finding, Finding]]] = {}
    for pair in itertools.combinations(sorted(findings, key=lambda f: KINDS.index(f.kind)), 2):
        faint = pair[0].kind == "nodule" and pair[1].size == "severe"  # edema, in which nobody would see it
        if pair[0].kind != pair[1].kind and not hides(*pair) and not faint:
            by_names.setdefault((name_of(pair[0]), name_of(pair[1])), []).append(pair)
    if not by_names:
        raise UserError("--pairs: no two of the findings asked for go together; name more kinds with --ask")
    orders = [_rounds(of, rng) for of in by_names.values()]
    for index in range(count):
        first, second = next(orders[index % len(orders)])
        yield _measured(first, rng), _measured(second, rng)


def _rounds(items: Sequence[Any], rng: np.random.Generator) -> Iterator[Any]:
    """Every item once in a random order, again and again."""
    while True:
        for index in rng.permutation(len(items)):
            yield items[index]


def _measured(finding: Finding, rng: np.random.Generator) -> Finding:
    """A nodule with a diameter; any other finding as it is."""
    if finding.kind != "nodule":
        return finding
    return Finding("nodule", finding.side, zone=finding.zone, mm=int(rng.choice(_MM)))


def ask(findings: Sequence[Finding], rng: np.random.Generator, reports: bool = False) -> dict[str, Any]:
    """A prompt row for findings, in held-out wordings or in those of the generator's `reports`."""
    table = IMPRESSION if reports else HELD_OUT
    said = " ".join(word_finding(table, findings[i], rng) for i in rng.permutation(len(findings)))
    return {"prompt": said} | _fields(Asked(tuple(findings)))


def _fields(asked: Asked) -> dict[str, Any]:
    return {"asked": [finding.as_dict() for finding in asked.findings], "denied": list(asked.denied)}


def asked_effusion(side: str, size: str = "") -> Asked:
    """What is asked for with an effusion on one of `EFFUSIONS`."""
    if side == "none":
        return Asked((), ("effusion",))
    return Asked((Finding("effusion", {"both": "bilateral"}.get(side, side), size),))


def ask_effusion(side: str, rng: np.random.Generator) -> dict[str, Any]:
    """A prompt row for an effusion on one of `EFFUSIONS`, worded as the generator's impressions are.

    Its field `effusion` has the side.
    """
    sizes = GRADES["effusion"][1]
    size = "" if side == "none" else sizes[int(rng.integers(len(sizes)))]
    asked = asked_effusion(side, size)
    return {"prompt": effusion_prompt(side, rng, size), "effusion": side} | _fields(asked)


def prompt_rows(
    count: int, seed: int, findings: Sequence[Finding] = (), paired: bool = False, reports: bool = False
) -> list[dict[str, Any]]:
    """`count` prompt rows, in turn for the findings asked for, or without them for the four of `EFFUSIONS`.

    Any beginning of the rows is balanced too.

    Raises:
      UserError: `count` or `seed` is out of range, or no two findings go together.
    """
    if count < 1 or seed < 0:
        raise UserError(f"--count {count} --seed {seed}: give at least 1 prompt and a seed of 0 or more")
    rng = np.random.default_rng(seed)
    if not findings:
        return [ask_effusion(EFFUSIONS[index % len(EFFUSIONS)], rng) for index in range(count)]
    asked = list((pairs if paired else singles)(findings, count, rng))
    return [ask(some, rng, reports) for some in asked]


def write_prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Writes prompt rows as JSON lines; returns False where the file already holds them.

    Raises:
      UserError: the file holds something else or cannot be written.
    """
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    try:
        if path.exists():
            if path.read_bytes() == data:
                return False
            raise UserError(f"{path}: holds something else; name another file or remove this one")
        replace_file(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    return True
