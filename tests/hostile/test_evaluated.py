"""What an evaluation reads beside pictures: phantom trees, the classifier's file, the metrics of runs."""

import json

import pytest
from hypothesis import given, settings

from jaxcxr.evaluation.curves import loss_svg, read_run, speed_svg
from jaxcxr.evaluation.pictures import Picture, read_pictures
from jaxcxr.evaluation.sets import open_set, phantom_seed
from jaxcxr.phantoms.tree import SETTINGS, TRUTH, read_settings, write_tree
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

RUN = [
    {"step": 10, "loss": 0.5, "images_per_second": 40.0},
    {"step": 20, "loss": None, "validation_loss": 0.25, "loss/timesteps_1_of_4": 0.1},
    {"step": 30, "loss": 0.25, "images_per_second": 41.5},
]
CONFIG = {"objective": {"name": "diffusion", "kl_weight": 0.0}, "samples": {"prompts": ["a"]}, "steps": 30}


def lines(rows):
    rows = rows if isinstance(rows, list) else [rows]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("phantoms") / "tree", patients=4, size=64, seed=3).out


def read_phantoms(tree) -> list[Picture]:
    images = open_set(tree)
    return read_pictures(images, 64, images.items[:10])


def read_tree(tree, name, data):
    before = (tree / name).read_bytes()
    (tree / name).write_bytes(data)
    one_line_or_fine(read_settings, tree)
    one_line_or_fine(write_tree, tree, patients=4, size=64, seed=3)
    seed = one_line_or_fine(phantom_seed, tree)
    assert isinstance(seed, Exception) or seed >= 0
    found = one_line_or_fine(read_phantoms, tree)
    assert isinstance(found, Exception) or all(picture.asked is not None for picture in found)
    (tree / name).write_bytes(before)


SETTINGS_OF_PHANTOMS = {
    "comment": "synthetic phantom, not a patient",
    "settings": {"seed": 3, "patients": 4, "size": 64, "film": None, "shares": {"train": 0.8}, "findings": ["nodule"]},
    "written": {"patients": 4, "studies": 6, "images": 6},
}


@given(value=json_variants(SETTINGS_OF_PHANTOMS))
def test_mutated_settings_of_phantoms(tree, value):
    read_tree(tree, SETTINGS, json.dumps(value).encode())


@given(data=byte_variants(json.dumps(SETTINGS_OF_PHANTOMS).encode()))
def test_mutated_bytes_of_settings_of_phantoms(tree, data):
    read_tree(tree, SETTINGS, data)


def truth_rows():
    return [
        {
            "dicom_id": "0" * 8,
            "subject_id": 10_000_032,
            "study_id": 50_000_032,
            "split": split,
            "view": "PA",
            "findings": [{"kind": "effusion", "side": "left", "size": "small", "box": [1, 2, 3, 4]}],
            "labels": ["Pleural Effusion"],
        }
        for split in ("train", "test")
    ]


@given(rows=json_variants(truth_rows()))
def test_mutated_truth_of_phantoms(tree, rows):
    real = (tree / TRUTH).read_text().splitlines()[-1]
    read_tree(tree, TRUTH, lines(rows) + real.encode())


@given(data=byte_variants(lines(truth_rows())))
def test_mutated_bytes_of_truth_of_phantoms(tree, data):
    read_tree(tree, TRUTH, data)


def plot(workdir, metrics, config):
    (workdir / "metrics.jsonl").write_bytes(metrics)
    (workdir / "config.json").write_bytes(config)
    run = one_line_or_fine(read_run, workdir)
    if not isinstance(run, Exception):
        assert isinstance(run.reconstructs, bool)
        assert "nan" not in loss_svg(run).lower() + speed_svg(run).lower()


@pytest.mark.filterwarnings("error")
@settings(max_examples=40)
@given(rows=json_variants(RUN))
def test_mutated_metrics(tmp_path, rows):
    plot(tmp_path, lines(rows), json.dumps(CONFIG).encode())


@pytest.mark.filterwarnings("error")
@settings(max_examples=40)
@given(data=byte_variants(lines(RUN)))
def test_mutated_bytes_of_metrics(tmp_path, data):
    plot(tmp_path, data, json.dumps(CONFIG).encode())


@settings(max_examples=50)
@given(value=json_variants(CONFIG))
def test_mutated_configs_of_runs(tmp_path, value):
    plot(tmp_path, b'{"step": 1}\n', json.dumps(value).encode())


@settings(max_examples=50)
@given(data=byte_variants(json.dumps(CONFIG).encode()))
def test_mutated_bytes_of_configs_of_runs(tmp_path, data):
    plot(tmp_path, b'{"step": 1}\n', data)
