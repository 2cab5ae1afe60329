"""The files of a workdir, configs and overrides, mutated."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxcxr import config as configs
from jaxcxr import workdir as workdirs
from jaxcxr.errors import UserError
from jaxcxr.interop import card, checksums
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.training import ranges
from jaxcxr.training.checkpoint import check_workdir, resumed
from jaxcxr.training.metrics import _open_after
from tests.hostile.mutations import HOSTILE, byte_variants, json_variants, one_line_or_fine
from tests.training.runs import ROOT

BASE = configs.load(ROOT / "configs" / "phantom.py")
CONFIG = json.loads(configs.to_json(BASE))
METRICS = [{"step": 0, "validation_loss": 0.7}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "grad_norm": 1.0}]
DATA = {
    "folders": [
        {
            **{"path": "runs/data", "weight": 1.0, "source": "MimicCxr", "fingerprint": "0f"},
            **{"settings": {"size": 64, "views": ["PA"], "prompts": ["{report}"], "sections": ["findings"]}},
            **{"splits": {"train": 4}, "views": {"train": {"PA": 4}}, "labels": {"train": {"Edema": 1}}},
        }
    ]
}
COMMAND = {"config": "configs/phantom.py", "overrides": ["--config.steps=3"]}
CHECKSUMS = {"params/d/0": {"size": 3, "crc32": 5}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir as far as its small files go."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model").mkdir()
    (folder / "checkpoints").mkdir()
    return folder


def fill(run, **changed):
    files = {"config": json.dumps(CONFIG), "metrics": "".join(json.dumps(row) + "\n" for row in METRICS)}
    files |= {"data": json.dumps(DATA), "command": json.dumps(COMMAND)}
    names = {name: name + (".jsonl" if name == "metrics" else ".json") for name in files}
    for name, content in (files | changed).items():
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (run / names[name]).write_bytes(data)


def look(run):
    """What train, convert and evaluate read."""
    config = one_line_or_fine(resumed, run, [])
    if not isinstance(config, UserError) and not isinstance(one_line_or_fine(ranges.check, config), UserError):
        configs.to_json(config)
    one_line_or_fine(check_workdir, run, BASE)
    one_line_or_fine(check_workdir, run, configs.changed(BASE, ["--config.seed=1"]))
    one_line_or_fine(workdirs.read_data, run)
    one_line_or_fine(workdirs.read_metrics, run)
    one_line_or_fine(card.with_card, Checkpoint({}, {}), run, "other")
    opened = one_line_or_fine(_open_after, run, 1)
    if isinstance(opened, tuple):
        opened[0].close()


@given(json_variants(CONFIG))
def test_a_mutated_config(run, value):
    fill(run, config=json.dumps(value))
    look(run)


@given(byte_variants(json.dumps(CONFIG).encode()))
def test_a_config_of_mutated_bytes(run, data):
    fill(run, config=data)
    look(run)


@given(json_variants(METRICS))
def test_mutated_metrics(run, value):
    lines = value if isinstance(value, list) else [value]
    fill(run, metrics="".join(json.dumps(row) + "\n" for row in lines))
    look(run)


@given(byte_variants("".join(json.dumps(row) + "\n" for row in METRICS).encode()))
def test_metrics_of_mutated_bytes(run, data):
    fill(run, metrics=data)
    look(run)


@given(json_variants(DATA))
def test_a_mutated_record_of_the_data(run, value):
    fill(run, data=json.dumps(value))
    look(run)


@given(json_variants(COMMAND))
def test_a_mutated_command(run, value):
    fill(run, command=json.dumps(value))
    look(run)


@given(json_variants(CHECKSUMS))
def test_mutated_checksums_are_damage(tmp_path, value):
    (tmp_path / checksums.CHECKSUMS).write_text(json.dumps(value))
    found = checksums.damage(tmp_path)
    assert found is None or len(found.splitlines()) == 1
    assert found or value == {}


def test_deep_json_is_one_line(run):
    for name in ("config", "data", "command", "metrics"):
        fill(run, **{name: "[" * 100_000 + "\n"})
        look(run)
        fill(run, **{name: '{"model": ' * 500 + "0" + "}" * 500 + "\n"})
        look(run)
    fill(run)
    assert isinstance(check_workdir(run, BASE), type(None))


KEYS = ("steps", "seed", "trainable", "optimizer", "optimizer.rates", "model.unet", "samples.prompts", "data.mixture")
VALUES = st.one_of(
    st.sampled_from(HOSTILE).map(repr),
    st.text(max_size=40),
    st.sampled_from(
        ["nan", "1e999", "-inf", "[" * 400, "{" * 50, "(" * 5000, "9" * 5000, "{'a': {}, 1: 2}", "{'a.b': 1}"]
    ),
    st.recursive(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), st.lists, max_leaves=8).map(repr),
)


@given(st.sampled_from([*KEYS, "", ".", "data.", "a.b.c", "data.path"]), VALUES)
def test_any_override_is_read_or_refused_in_one_line(key, value):
    config = one_line_or_fine(configs.changed, BASE, [f"--config.{key}={value}"])
    if not isinstance(config, UserError) and not isinstance(one_line_or_fine(ranges.check, config), UserError):
        json.loads(configs.to_json(config))


@given(json_variants(CONFIG))
def test_a_config_file_of_any_values_is_read_or_refused_in_one_line(tmp_path, value):
    file = Path(tmp_path) / "mine.py"
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({json.dumps(value)!r}))\n"
    )
    config = one_line_or_fine(configs.load, file)
    if not isinstance(config, UserError):
        one_line_or_fine(ranges.check, config)
