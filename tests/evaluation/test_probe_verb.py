"""`jaxcxr probe`: a text encoder that knows a word tells the label that hangs on it."""

import json

import numpy as np
import pytest

from jaxcxr import config as configs
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data.prepare import prepare
from tests import pipelines
from tests.evaluation import small
from tests.training import runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    small.write_images(folder / "images", 160, seed=1)
    rows = []
    for number in range(160):
        sick = number % 2
        text = pipelines.REPORTS[0] if sick else pipelines.REPORTS[1]
        row = {"file_name": f"{number:03}.png", "text": text, "patient": f"p{number}"}
        rows.append(row | {"labels": ["Edema"] if sick else [], "split": "test" if number % 3 == 0 else "train"})
    (folder / "images" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.load(runs.ROOT / "configs" / "base.py").data
    config.size, config.views, config.tokenizer_vocab, config.min_words = 16, (), 600, 0
    prepare(config, folder / "images", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("base") / "base")


def test_two_encoders_are_compared(tmp_path, data, base, capsys):
    tuned = interop.load(base)
    draw = np.random.default_rng(0)
    values = {name: np.asarray(value) for name, value in tuned.parameters().items()}
    moved = {
        name: value + 0.1 * draw.standard_normal(value.shape).astype(np.float32) * name.startswith("text_encoder.")
        for name, value in values.items()
    }
    interop.save(tuned.with_parameters(moved), tmp_path / "tuned")
    command = ["probe", "--checkpoint", str(base), str(tmp_path / "tuned"), "--data", str(data)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found = {
        (row["set"], row["metric"], row["group"]): row
        for row in json.loads((tmp_path / "out" / "probe.json").read_text())["rows"]
    }
    assert found["base", "probe_auroc", "finding=Edema"]["value"] == 1, "the two reports differ"
    assert found["tuned", "probe_gain", ""]["value"] == pytest.approx(0, abs=0.2)
    kept = found["tuned", "vocabulary_cosine", ""]
    assert 0 < kept["value"] < 0.9999
    assert ("base", "vocabulary_cosine", "") not in found
    assert "base: probe_auroc 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "3"], "--count 3: may be 40 or more"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--checkpoint", "phantom", "other/phantom"], "--checkpoint: two are called phantom"),
    ],
)
def test_bad_input_is_one_line(tmp_path, data, base, options, message, capsys):
    command = ["probe", "--checkpoint", str(base), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists()


def test_data_without_labels(tmp_path, base, capsys):
    folder = small.write_images(tmp_path / "images", 50, seed=1)
    rows = [{"file_name": f"{number:03}.png", "text": pipelines.REPORTS[0]} for number in range(50)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.load(runs.ROOT / "configs" / "base.py").data
    config.size, config.views, config.tokenizer_vocab, config.min_words, config.validate_share = 16, (), 600, 0, 0.3
    prepare(config, folder, tmp_path / "data")
    command = ["probe", "--checkpoint", str(base), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "no label is in 20 reports of each split" in capsys.readouterr().err
