import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.data.reports import parse
from jaxcxr.errors import UserError
from jaxcxr.phantoms.generator import DEVICES, KINDS, Finding, Patient, draw
from jaxcxr.phantoms.reports import (
    DETAIL,
    IMPRESSION,
    LABELS,
    NEGATIVE,
    effusion_prompt,
    mentioned_labels,
    write_report,
)
from jaxcxr.phantoms.studies import PREVALENCE, sample_findings
from jaxcxr.phantoms.tree import write_tree

DENIAL = re.compile(r"\b(no|not|neither|without|normal)\b", re.IGNORECASE)
NAMES = {
    "effusion": "effusion",
    "cardiomegaly": "cardiomegaly|enlargement|enlarged",
    "pneumothorax": "pneumothorax",
    "consolidation": "consolidation",
    "nodule": "nodule",
    "edema": "edema",
    "endotracheal tube": "endotracheal tube|ET tube",
    "nasogastric tube": "nasogastric tube|NG tube|enteric tube",
    "central line": "central|line",
    "pacemaker": "pacemaker",
}


def pair(findings, size=64, number=3, **how):
    """The same patient with and without findings, as int arrays, and the drawing."""
    with_it = draw(Patient(7, number), 0, findings, size, **how)
    without = draw(Patient(7, number), 0, [], size, **how)
    return with_it.image.astype(int), without.image.astype(int), with_it


def test_equal_arguments_give_equal_pixels_and_any_other_gives_others():
    found = [Finding("effusion", "left", "moderate"), Finding("edema", size="mild")]
    base = draw(Patient(1, 2), 3, found, 64)
    np.testing.assert_array_equal(base.image, draw(Patient(1, 2), 3, found, 64).image)
    others = [
        draw(Patient(2, 2), 3, found, 64),
        draw(Patient(1, 3), 3, found, 64),
        draw(Patient(1, 2), 4, found, 64),
        draw(Patient(1, 2), 3, found, 64, exposure=1),
        draw(Patient(1, 2), 3, found, 64, view="AP"),
    ]
    for other in others:
        assert np.abs(base.image.astype(int) - other.image).mean() > 2


@pytest.mark.parametrize("size", [64, 100, 256])
def test_the_lungs_are_dark_and_spine_heart_and_abdomen_bright(size):
    for number in range(4):
        image = draw(Patient(0, number), 0, [], size).image
        assert image.shape == (size, size)
        assert image.dtype == np.uint8

        def mean(x0, x1, y0, y1, image=image):
            return image[int(y0 * size) : int(y1 * size), int(x0 * size) : int(x1 * size)].mean()

        right, left = mean(0.22, 0.34, 0.3, 0.5), mean(0.68, 0.78, 0.3, 0.5)
        heart_left, heart_right = mean(0.57, 0.62, 0.52, 0.6), mean(0.32, 0.37, 0.52, 0.6)
        for bright in (mean(0.47, 0.53, 0.4, 0.6), mean(0.3, 0.7, 0.8, 0.9), heart_left):
            assert bright > max(right, left) + 40
        assert heart_left > heart_right + 25, "the apex points to the patient's left, image right"


@pytest.mark.parametrize("size", ["small", "moderate", "large"])
@pytest.mark.parametrize("side", ["left", "right", "bilateral"])
def test_effusion_brightens_its_own_lower_zone_only(side, size):
    for number in range(4):
        image, normal, drawing = pair([Finding("effusion", side, size)], number=number)
        change = image - normal
        halves = {"right": change[:, :28], "left": change[:, 36:]}
        for name, half in halves.items():
            if side in (name, "bilateral"):
                assert half[32:].clip(0).sum() > 1000, "hardly visible"
                assert half[:12].max() < 12, "the apex stays clear"
            else:
                assert np.abs(half).max() <= 1
        assert change[drawing.masks[0]].mean() > 35


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("effusion", ("small", "moderate", "large")),
        ("pneumothorax", ("small", "moderate", "large")),
        ("cardiomegaly", ("mild", "moderate", "severe")),
    ],
)
def test_a_larger_size_has_a_larger_mask(kind, sizes):
    side = "" if kind == "cardiomegaly" else "right"
    for number in range(6):
        areas = [draw(Patient(0, number), 0, [Finding(kind, side, s)], 64).masks[0].sum() for s in sizes]
        assert areas[0] * 1.15 < areas[1]
        assert areas[1] * 1.15 < areas[2]


def test_worse_edema_is_whiter():
    means = [pair([Finding("edema", size=s)])[0].mean() for s in ("mild", "moderate", "severe")]
    assert pair([])[0].mean() + 1 < means[0]
    assert means[0] + 1 < means[1]
    assert means[1] + 1 < means[2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_pneumothorax_darkens_the_lateral_lung_of_its_side(side):
    image, normal, drawing = pair([Finding("pneumothorax", side, "moderate")], size=128)
    change, mask = image - normal, drawing.masks[0]
    own = np.s_[:, :64] if side == "right" else np.s_[:, 64:]
    assert change[mask].mean() < -10
    assert mask[own].sum() == mask.sum() > 200
    other = np.s_[:, 72:] if side == "right" else np.s_[:, :56]
    assert np.abs(change[other]).max() <= 1


EVERY = [
    *(Finding("effusion", side, "moderate") for side in ("left", "right", "bilateral")),
    Finding("pneumothorax", "right", "large"),
    Finding("consolidation", "left", zone="upper"),
    Finding("consolidation", "right", zone="lower"),
    Finding("nodule", "left", zone="mid", mm=12),
    Finding("nodule", "right", zone="upper", mm=28),
    *(
        Finding("device", side if "tube" not in device else "", device=device)
        for device in DEVICES
        for side in ("left",)
    ),
]


@pytest.mark.parametrize("finding", EVERY, ids=lambda f: f"{f.kind}-{f.side}-{f.device}")
@pytest.mark.parametrize("size", [64, 256])
def test_mask_and_box_hold_the_pixels_that_the_finding_changed(finding, size):
    image, normal, drawing = pair([finding], size=size)
    (mask,), ((x0, y0, x1, y1),) = drawing.masks, drawing.boxes
    assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
    for row in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
        assert row.any(), "the box is not tight"
    change = np.abs(image - normal)
    assert (change[mask] > 8).mean() > 0.75
    assert change[mask].mean() > 12 * change[~mask].mean()


def test_nodule_has_its_stated_diameter():
    for mm in (14, 30):
        mask = draw(Patient(0, 1), 0, [Finding("nodule", "right", zone="upper", mm=mm)], 512).masks[0]
        diameter = 2 * np.sqrt(mask.sum() / np.pi) * 400 / 512
        assert mm * 0.98 < diameter < mm * 1.28, "millimetres times the pose's scale, 1.04 to 1.22"


def test_cardiomegaly_mask_widens_the_heart_beyond_half_the_chest():
    normal = draw(Patient(0, 1), 0, [], 128).image.astype(int)
    drawing = draw(Patient(0, 1), 0, [Finding("cardiomegaly", size="severe")], 128)
    x0, _, x1, _ = drawing.boxes[0]
    assert (x1 - x0) / 128 > 0.45
    changed = (drawing.image.astype(int) - normal) > 25
    assert (changed & drawing.masks[0]).sum() > 0.85 * changed.sum() > 100


def test_leaving_one_finding_out_changes_nothing_but_that_finding():
    nodule, effusion = Finding("nodule", "right", zone="upper", mm=20), Finding("effusion", "left", "large")
    both = draw(Patient(0, 5), 1, [effusion, nodule], 128)
    alone = draw(Patient(0, 5), 1, [nodule], 128)
    assert both.boxes[1] == alone.boxes[0]
    np.testing.assert_array_equal(both.image[:, :56], alone.image[:, :56])


@pytest.mark.parametrize("small", [64, 128])
def test_a_patient_is_the_same_picture_at_any_size(small):
    found = [Finding("effusion", "right", "moderate"), Finding("device", "left", device="pacemaker")]
    for number in range(3):
        fine, coarse = (draw(Patient(0, number), 0, found, size) for size in (256, small))
        shrunk = Image.fromarray(fine.image).resize((small, small), Image.Resampling.HAMMING)
        assert np.abs(np.asarray(shrunk, int) - coarse.image).mean() < 3
        ratio = fine.masks[0].mean() / coarse.masks[0].mean()
        assert 0.93 < ratio < 1.07


def test_sizes_and_views_outside_the_range_are_refused():
    with pytest.raises(UserError, match="64 to 512"):
        draw(Patient(0, 0), 0, [], 32)
    with pytest.raises(UserError, match="PA or AP"):
        draw(Patient(0, 0), 0, [], 64, view="LATERAL")


def sampled(count=400, **how):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield sample_findings(rng, **how), rng


def test_every_fact_has_at_least_four_paraphrases():
    for table in (IMPRESSION, DETAIL, NEGATIVE):
        for phrases in table.values():
            assert len(set(phrases)) >= 4


def test_the_impression_names_every_finding_with_side_and_size():
    for findings, rng in sampled():
        text = write_report(findings, rng).impression
        assert 2 <= len(text.split()) <= 50
        assert "{" not in text
        sentences = [s.lower() for s in text.split(". ")]
        for f in findings:
            needed = [f.side, f.size, f.zone, str(f.mm) if f.mm else ""]
            name = re.compile(NAMES[f.device or f.kind], re.IGNORECASE)
            told = [s for s in sentences if name.search(s) and all(word in s for word in needed)]
            assert told, (f, text)


def test_negatives_never_contradict_the_findings():
    explicit, clear = 0, 0
    for findings, rng in sampled():
        report = write_report(findings, rng)
        kinds = {f.kind for f in findings}
        assert not report.negated & kinds
        for text in (report.findings, report.impression):
            for sentence in text.split(". "):
                for kind in KINDS[:6]:
                    if DENIAL.search(sentence) and re.search(NAMES[kind], sentence, re.IGNORECASE):
                        assert kind not in kinds or "lung markings" in sentence, sentence
        for kind in report.negated:
            label = {"effusion": "Pleural Effusion"}.get(kind, kind.capitalize())
            assert mentioned_labels(findings, report)[label] == 0.0
        clear += "effusion" not in kinds
        explicit += "effusion" not in kinds and "effusion" in report.impression
    assert 0.5 < explicit / clear < 0.9


def test_effusion_prompts_come_from_the_impressions():
    for side, word in (("left", "left"), ("right", "right"), ("both", "bilateral")):
        prompts = {effusion_prompt(side, index) for index in range(60)}
        assert len(prompts) > 8
        for prompt in prompts:
            assert word in prompt.lower()
            assert "effusion" in prompt
            assert not DENIAL.search(prompt)
            assert not any(other in prompt.lower() for other in {"left", "right", "bilateral"} - {word})
    for index in range(40):
        assert re.search(r"(no|neither|without)[^.]* effusion", effusion_prompt("none", index), re.IGNORECASE)
    assert effusion_prompt("left", 5) == effusion_prompt("left", 5)
    assert "large" in effusion_prompt("left", 5, size="large").lower()


def test_prevalences_and_the_choice_of_findings():
    drawn = [findings for findings, _ in sampled(1200)]
    sides = [next((f.side for f in found if f.kind == "effusion"), "none") for found in drawn]
    for side, share in (("none", 0.4), ("left", 0.2), ("right", 0.2), ("bilateral", 0.2)):
        assert abs(sides.count(side) / 1200 - share) < 0.04
    hearts = sum(any(f.kind == "cardiomegaly" for f in found) for found in drawn)
    assert abs(hearts / 1200 - PREVALENCE["cardiomegaly"]) < 0.04
    only = [findings for findings, _ in sampled(1200, kinds=["effusion"])]
    assert [[f for f in found if f.kind == "effusion"] for found in drawn] == only


def truths(tree) -> list[dict]:
    return [json.loads(line) for line in (tree.out / "phantom-truth.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "tree"
    return write_tree(out, 30, 64, seed=5, masks=True)


def test_the_tree_is_laid_out_as_mimic_cxr_jpg(tree):
    metadata = table(tree.out / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert len(metadata) == tree.images == len(list(tree.out.rglob("*.jpg")))
    assert tree.studies == len(list(tree.out.rglob("*.txt"))) < tree.images
    for row in metadata:
        subject, study, dicom = row["subject_id"], row["study_id"], row["dicom_id"]
        assert re.fullmatch(r"1\d{7} 5\d{7} ([0-9a-f]{8}-){4}[0-9a-f]{8}", f"{subject} {study} {dicom}")
        folder = tree.out / "files" / f"p{subject[:2]}" / f"p{subject}"
        with Image.open(folder / f"s{study}" / f"{dicom}.jpg") as image:
            assert (image.mode, image.size, image.format) == ("L", (64, 64), "JPEG")
            assert image.info["comment"] == b"synthetic phantom, not a patient"
        assert row["ViewPosition"] in ("PA", "AP")
        lines = (folder / f"s{study}.txt").read_text().splitlines()
        assert lines[0].strip() == "FINAL REPORT"
        assert all(line.startswith(" ") for line in lines)
    for name in ("chexpert", "negbio"):
        rows = table(tree.out / f"mimic-cxr-2.0.0-{name}.csv.gz")
        assert list(rows[0]) == ["subject_id", "study_id", *LABELS]
        assert {row[label] for row in rows for label in LABELS} <= {"1.0", "0.0", "-1.0", ""}
    tested = table(tree.out / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert "Airspace Opacity" in tested[0]
    assert "subject_id" not in tested[0]
    assert "Lung Opacity" not in tested[0]


def test_patients_do_not_cross_splits(tree):
    rows = table(tree.out / "mimic-cxr-2.0.0-split.csv.gz")
    splits = {}
    for row in rows:
        splits.setdefault(row["subject_id"], set()).add(row["split"])
    counts = [next(iter(of)) for of in splits.values() if len(of) == 1]
    assert {name: counts.count(name) for name in set(counts)} == {"train": 24, "validate": 3, "test": 3}
    tested = {row["study_id"] for row in table(tree.out / "mimic-cxr-2.1.0-test-set-labeled.csv")}
    assert tested == {row["study_id"] for row in rows if row["split"] == "test"}


def test_truth_reports_labels_and_masks_tell_one_story(tree):
    truth = truths(tree)
    labels = {row["study_id"]: row for row in table(tree.out / "mimic-cxr-2.0.0-chexpert.csv.gz")}
    with_impression = 0
    for record in truth:
        folder = tree.out / "files" / f"p{str(record['subject_id'])[:2]}" / f"p{record['subject_id']}"
        sections = dict(parse((folder / f"s{record['study_id']}.txt").read_text()))
        with_impression += "impression" in sections
        row = labels[str(record["study_id"])]
        for label, value in record["labels"].items():
            assert row[label] in ("", "-1.0", str(value))
            assert (row[label] == "1.0") == (value == 1.0)
        for finding in record["findings"]:
            told = " ".join(sections.get("impression", sections["findings"]).lower().split())
            assert finding.get("side", "") in told
            mask = np.asarray(Image.open(tree.out / finding["mask"])) > 0
            x0, y0, x1, y1 = finding["box"]
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
    assert 0.7 < with_impression / len(truth) < 1.0


def test_equal_seeds_give_equal_bytes(tree, tmp_path):
    again = write_tree(tmp_path / "again", 30, 64, seed=5, masks=True)
    files = sorted(p.relative_to(tree.out) for p in tree.out.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again.out) for p in again.out.rglob("*") if p.is_file())
    for name in files:
        assert (tree.out / name).read_bytes() == (again.out / name).read_bytes(), name
    other = write_tree(tmp_path / "other", 3, 64, seed=6)
    assert not {p.name for p in other.out.rglob("*.jpg")} & {p.name for p in again.out.rglob("*.jpg")}


def test_a_second_run_skips_and_other_settings_are_refused(tree):
    before = {p: p.stat().st_mtime_ns for p in tree.out.rglob("*")}
    again = write_tree(tree.out, 30, 64, seed=5, masks=True)
    assert not again.fresh
    assert (again.images, again.studies) == (tree.images, tree.studies)
    with pytest.raises(UserError, match="another seed"):
        write_tree(tree.out, 30, 64, seed=6, masks=True)
    assert before == {p: p.stat().st_mtime_ns for p in tree.out.rglob("*")}


def test_a_folder_of_other_things_and_unknown_findings_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a phantom tree"):
        write_tree(tmp_path, 2, 64)
    with pytest.raises(UserError, match="'fracture' is unknown"):
        write_tree(tmp_path / "new", 2, 64, findings=["fracture"])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_film_is_as_large_as_asked_and_its_truth_is_enlarged_with_it(tmp_path):
    film = write_tree(tmp_path / "film", 3, 64, seed=5, masks=True, film=(318, 382))
    small = {record["dicom_id"]: record for record in truths(write_tree(tmp_path / "small", 3, 64, seed=5))}
    sizes = {(row["Columns"], row["Rows"]) for row in table(film.out / "mimic-cxr-2.0.0-metadata.csv.gz")}
    assert sizes == {("318", "382")}
    compared = 0
    for record in truths(film):
        with Image.open(next(film.out.rglob(f"{record['dicom_id']}.jpg"))) as image:
            assert image.size == (318, 382)
            assert 0.15 < Path(image.filename).stat().st_size / (318 * 382) < 0.6, "bytes per pixel"
        for large, drawn in zip(record["findings"], small[record["dicom_id"]]["findings"], strict=True):
            scale = np.array([318, 382, 318, 382]) / 64
            np.testing.assert_allclose(large["box"], np.array(drawn["box"]) * scale, atol=1)
            assert np.asarray(Image.open(film.out / large["mask"])).shape == (382, 318)
            compared += 1
    assert compared
    with pytest.raises(UserError, match="another film"):
        write_tree(film.out, 3, 64, seed=5, masks=True, film=(318, 300))
    with pytest.raises(UserError, match="film 318x60 has a side outside 64"):
        write_tree(tmp_path / "low", 3, 64, film=(318, 60))
