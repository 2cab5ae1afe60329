"""Phantoms that were drawn once and stay as they are: the same seed gives the same picture, words and tree.

`golden.png` holds pictures above their masks and `golden.json` digests of words; `python -m tests.phantoms.test_golden`
writes both.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcxr.phantoms.generator import KINDS, Patient, draw
from jaxcxr.phantoms.reports import report_text, write_report
from jaxcxr.phantoms.studies import sample_findings
from jaxcxr.phantoms.tree import write_tree

PICTURES, DIGESTS = (Path(__file__).with_name(f"golden.{suffix}") for suffix in ("png", "json"))
NOT_WORDS = {".jpg", ".png"}


def digest(*texts: bytes) -> str:
    whole = hashlib.sha256()
    for text in texts:
        whole.update(len(text).to_bytes(8, "big") + text)
    return whole.hexdigest()


def sheet() -> np.ndarray:
    """Sixteen studies, four a row, of all kinds, sizes and views: each picture with the union of its masks below it."""
    rows = []
    for seed in range(4):
        pictures, masks = [], []
        for number in range(4):
            prevalence = dict.fromkeys(KINDS, 0.5) | {"left effusion": 0.3, "bilateral effusion": 0.3}
            findings = sample_findings(np.random.default_rng([seed, number]), KINDS, prevalence)
            size, view = (64, 128)[number % 2], ("PA", "AP")[number // 2]
            drawing = draw(Patient(seed, number), number, findings, size, view, exposure=number % 2)
            pictures.append(np.pad(drawing.image, ((0, 128 - size), (0, 128 - size))))
            mask = np.any([*drawing.masks, np.zeros((size, size), bool)], axis=0)
            masks.append(np.pad(np.uint8(255) * mask, ((0, 128 - size), (0, 128 - size))))
        rows += [np.concatenate(pictures, 1), np.concatenate(masks, 1)]
    return np.concatenate(rows)


def digests(folder: Path) -> dict[str, str]:
    """Digests of 300 studies' findings, of their reports, and of a tree's names and of all in it that is no picture."""
    findings, reports = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = sample_findings(rng)
        findings.append(json.dumps([finding.as_dict() for finding in found]).encode())
        report = write_report(found, rng, impression=seed % 8 > 0)
        reports.append(report_text(report, "CHEST (PA)", "None.", rng).encode())
    tree = write_tree(folder / "tree", 12, 64, seed=5, masks=True).out
    files = sorted(file.relative_to(tree) for file in tree.rglob("*") if file.is_file())
    words = [(tree / file).read_bytes() for file in files if file.suffix not in NOT_WORDS]
    return {
        "findings": digest(*findings),
        "reports": digest(*reports),
        "names": digest(*(str(file).encode() for file in files)),
        "words": digest(*words),
    }


def test_pictures_and_masks_are_as_they_were():
    with Image.open(PICTURES) as image:
        before = np.asarray(image).astype(int)
    change = np.abs(sheet() - before)
    # Another processor may round a float the other way: a gray level here, a mask's border pixel there.
    assert (change > 0).mean() < 1e-3
    assert (change > 1).mean() < 1e-4


def test_findings_reports_and_tree_are_as_they_were(tmp_path):
    assert digests(tmp_path) == json.loads(DIGESTS.read_text())


if __name__ == "__main__":
    import tempfile

    Image.fromarray(sheet()).save(PICTURES, optimize=True)
    with tempfile.TemporaryDirectory() as folder:
        DIGESTS.write_text(json.dumps(digests(Path(folder)), indent=2) + "\n")
