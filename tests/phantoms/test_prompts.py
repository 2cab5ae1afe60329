import itertools
import json
import re

import numpy as np
import pytest

from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.phantoms import prompts
from jaxcxr.phantoms.generator import KINDS, Finding
from jaxcxr.phantoms.prompts import EFFUSIONS, HELD_OUT, parse_asked, prompt_rows
from jaxcxr.phantoms.reports import DETAIL, IMPRESSION, report_text, write_report
from jaxcxr.phantoms.studies import sample_findings
from jaxcxr.phantoms.truth import CLASSES, classes_of

OFTEN = dict.fromkeys(("cardiomegaly", "pneumothorax", "consolidation", "nodule", "edema", "device"), 0.5)


def finding(row):
    return Finding(**row)


def worded(tables, mm=(14,)):
    """Every sentence that the tables hold, for every finding that can be asked for."""
    for one in parse_asked("all"):
        key = one.device or ("bilateral effusion" if one.side == "bilateral" else one.kind)
        for table, size in itertools.product(tables, mm if one.kind == "nodule" else (0,)):
            for template in table.get(key, ()):
                words = {"side": one.side, "size": one.size, "zone": one.zone}
                capital = {name.capitalize(): word.capitalize() for name, word in words.items()}
                yield template.format(**words, **capital, mm=size)


def test_no_held_out_wording_occurs_in_the_generators_reports():
    held_out = {sentence.lower() for sentence in worded([HELD_OUT])}
    assert len(held_out) == 3 * len(parse_asked("all"))
    said = {sentence.lower() for sentence in worded([IMPRESSION, DETAIL])}
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        found = sample_findings(rng, KINDS, OFTEN | {"left effusion": 0.4, "bilateral effusion": 0.4})
        said.add(" ".join(report_text(write_report(found, rng), "CHEST", "None.", rng).lower().split()))
    everything = "\n".join(said)
    assert not [sentence for sentence in held_out if sentence in everything]
    assert "pleural effusion, small." in everything, "the search finds what is there"


def test_every_wording_states_the_finding_with_its_qualifiers():
    assert set(HELD_OUT) == set(IMPRESSION)
    for reports in (False, True):
        for row in prompt_rows(300, 1, parse_asked("all"), reports=reports):
            (asked,) = row["asked"]
            needed = [asked.get(name, "") for name in ("side", "size", "zone")]
            needed.append(f"{asked['mm']} mm" if "mm" in asked else "")
            text = row["prompt"].lower().replace("both sides", "bilateral")
            assert all(word in text for word in needed), row
            others = (
                {"left", "right", "bilateral"}
                - {asked.get("side")}
                - ({"bilateral"} if asked["kind"] == "edema" else set())
            )
            assert not any(re.search(rf"\b{other}\b", text) for other in others), row


def test_all_findings_are_asked_for_in_equal_parts():
    rows = prompt_rows(1100, 0, parse_asked("all"))
    names = [finding(row["asked"][0]) for row in rows]
    counts = {
        name: sum((one.device or one.kind) == name for one in names) for name in {f.device or f.kind for f in names}
    }
    assert set(counts.values()) == {110}
    assert {name for one in names for name in classes_of(one)} == set(CLASSES)
    assert {(one.kind, one.size) for one in names if one.size} >= {("effusion", "small"), ("edema", "severe")}
    assert {one.mm for one in names if one.kind == "nodule"} <= set(range(10, 31))
    assert all(row["denied"] == [] for row in rows)


def test_pairs_are_two_kinds_that_the_generator_draws_together():
    rows = prompt_rows(400, 0, parse_asked("all"), paired=True)
    kinds = set()
    for row in rows:
        first, second = map(finding, row["asked"])
        assert first.kind != second.kind
        kinds.add(frozenset((first.kind, second.kind)))
        if (
            first.kind == "effusion"
            and second.kind in ("nodule", "consolidation")
            and first.side in (second.side, "bilateral")
        ):
            assert first.size != "large"
            assert second.zone != "lower"
        assert (first.kind, second.kind, second.size) != ("nodule", "edema", "severe"), "nobody would see the nodule"
        assert row["prompt"].count(".") >= 2
    assert len(kinds) == 21
    with pytest.raises(UserError, match="no two of the findings"):
        prompt_rows(4, 0, parse_asked("left pacemaker, endotracheal tube"), paired=True)


def test_what_an_entry_leaves_open_is_asked_for_in_turn():
    assert parse_asked("large left effusion") == [Finding("effusion", "left", "large")]
    assert {f.size for f in parse_asked("left  Effusion")} == {"small", "moderate", "large"}
    assert {(f.side, f.zone) for f in parse_asked("upper nodule")} == {("left", "upper"), ("right", "upper")}
    assert {f.device for f in parse_asked("right device")} == {"central line", "pacemaker"}
    assert parse_asked("edema, severe edema") == parse_asked("edema")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "fracture",
            r"'fracture': no such finding; ask for \[small\|moderate\|large\] \[left\|right\|bilateral\] effusion, ",
        ),
        ("left edema", r"'left edema': edema has no 'left'; ask for \[mild\|moderate\|severe\] edema$"),
        ("bilateral nodule", r"nodule has no 'bilateral'; ask for \[upper\|mid\|lower\] \[left\|right\] nodule$"),
        ("left nasogastric tube", r"no 'left'; ask for nasogastric tube$"),
        ("severe left effusion", r"no 'severe left'"),
        ("effusion left", r"no such finding"),
        (" , ", r"names no finding"),
    ],
)
def test_a_finding_or_side_that_does_not_exist_is_one_line(tmp_path, capsys, asked, message):
    assert main(["prompts", "--out", str(tmp_path / "p.jsonl"), "--ask", asked]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_effusion_prompts_are_balanced_and_written_once(tmp_path):
    file = tmp_path / "new" / "prompts.jsonl"
    assert prompts.write_prompts(file, prompt_rows(40, seed=1))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["effusion"] for row in rows] == list(EFFUSIONS) * 10
    for row in rows:
        sides = {side for side in ("left", "right", "bilateral") if side in row["prompt"].lower()}
        assert sides == {"none": set(), "both": {"bilateral"}}.get(row["effusion"], {row["effusion"]})
        assert [asked["side"] for asked in row["asked"]] == list(sides)
        assert all(asked["size"] in row["prompt"].lower() for asked in row["asked"])
        assert row["denied"] == ([] if sides else ["effusion"])
    assert not prompts.write_prompts(file, prompt_rows(40, seed=1))
    with pytest.raises(UserError, match="holds something else"):
        prompts.write_prompts(file, prompt_rows(40, seed=2))
    with pytest.raises(UserError, match="at least 1"):
        prompt_rows(0, 0)


def test_the_verb_writes_what_is_asked_for(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    for said in ("6 prompts", "6 prompts, already there"):
        assert main(["prompts", "--out", str(file), "--count", "6", "--ask", "left nodule, edema", "--pairs"]) == 0
        assert said in capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [{asked["kind"] for asked in row["asked"]} for row in rows] == [{"nodule", "edema"}] * 6
    assert main(["prompts", "--out", str(tmp_path / "q.jsonl"), "--pairs"]) == 2
    assert "--ask all" in capsys.readouterr().err
