import dataclasses
import json
import os
import re

import pytest
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.__main__ import _joined, main
from jaxcxr.data import settings
from jaxcxr.errors import UserError
from jaxcxr.parallel.chips import CHIPS
from jaxcxr.plan.networks import describe
from jaxcxr.training import ranges
from tests.training.runs import ROOT

BASE = ROOT / "configs" / "base.py"
EVALUATED = ["--config", "c.py", "--real", "r", "--generated", "g", "--out", "o"]
PREPARE = ["prepare", "--config", str(BASE), "--source", "s", "--out", "o"]


def test_overrides_take_the_keys_type():
    config = configs.load(
        BASE,
        [
            "--config.steps=7",
            "--config.optimizer.learning_rate=1",
            "--config.data.path=1234",
            "--config.mesh.fsdp=2",
            "--config.data.views=('AP',)",
        ],
    )
    assert config.steps == 7
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.data.path == "1234"
    assert config.mesh.fsdp == 2
    assert config.data.views == ("AP",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.stepz=7", r"--config\.stepz: no such key; the config has .*steps"),
        ("--config.data.sizes=7", r"data has .*size"),
        ("--config.steps.more=7", "it is a value"),
        ("--config.steps=many", "a int is wanted, as in 1000"),
        ("--config.steps=1.5", "a int is wanted"),
        ("--config.model.measure_scaling_factor=1", "a bool is wanted"),
        ("--stepz=7", "not an option of this verb"),
        ("--config.steps", "--config.steps: has no value; give --config.steps=VALUE"),
        ("--config.steps=" + "[" * 500, "a int is wanted"),
        ("--config.steps=" + "9" * 5000, "a int is wanted"),
        ("--config.optimizer.learning_rate=1" + "0" * 400, "a float is wanted"),
        ("--config.data.path=gs://bucket/data", r"config\.data\.path=gs://bucket/data: only files and folders of this"),
        ("--config.data.mixture=(('s3://more', 0.5),)", r"config\.data\.mixture=s3://more: only files"),
    ],
)
def test_a_bad_override_is_told(override, message):
    with pytest.raises(UserError, match=message):
        configs.load(BASE, [override])


def test_an_override_of_a_tuple_that_was_read_back_as_a_list_is_taken():
    kept = ConfigDict(json.loads(configs.to_json(configs.load(BASE))))
    assert list(configs.changed(kept, ["--config.data.views=('AP',)"]).data.views) == ["AP"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", r"mine\.py: this config fails: SyntaxError"),
        ("import nothing_such\n", r"mine\.py: this config fails: ModuleNotFoundError.* \(line 1\)$"),
        ("def get_config():\n    return 1 / 0\n", r"mine\.py: get_config\(\) fails: ZeroDivisionError.* \(line 2\)$"),
        ("import json\n\ndef get_config():\n    json.loads('{')\n", r"fails: JSONDecodeError.* \(line 4\)$"),
        ("def get_config():\n    0\n    (\n", r"fails: SyntaxError.*\(mine\.py, line 3\)$"),
    ],
)
def test_a_config_file_that_fails_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        configs.load(tmp_path / "mine.py")
    assert "\n" not in str(error.value)


def test_stages():
    phantom = ROOT / "configs" / "phantom.py"
    assert configs.load(f"{phantom}:autoencoder").method == "autoencoder"
    assert configs.load(phantom).method == "diffusion"
    with pytest.raises(UserError, match="no such stage"):
        configs.load(f"{phantom}:gan")


@pytest.mark.parametrize("stage", ["weak.py:abc", "strong.py:0", "strong.py:half"])
def test_a_stage_that_is_no_number_of_chips_is_told(stage):
    with pytest.raises(UserError, match=f"{stage}: this config has no such stage"):
        configs.load(ROOT / "configs" / "scaling" / stage)


def test_a_config_that_is_a_dict_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {'steps': 1}\n")
    with pytest.raises(UserError, match=r"mine.py: get_config\(\) gives a dict; a ConfigDict is wanted"):
        configs.load(tmp_path / "mine.py")


@pytest.mark.parametrize(
    "file", sorted([*(ROOT / "configs").glob("*.py"), *(ROOT / "configs/scaling").glob("*.py")]), ids=lambda f: f.stem
)
def test_every_config_loads_and_has_the_keys_of_base(file):
    config, base = configs.load(file), configs.load(BASE)
    ranges.check(config)
    assert set(config.keys()) == set(base.keys())
    assert file.read_text().startswith('"""')


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "data").glob("*.py")), ids=lambda file: file.stem)
def test_every_data_config_is_complete(file, tmp_path, monkeypatch):
    config = configs.load(file, ["--config.data.tokenizer=folder"])
    assert config.data.keys() == settings.defaults().keys()
    monkeypatch.chdir(tmp_path)
    for name in config.data.report_tables:
        (tmp_path / name).touch()
    assert settings.Settings.from_config(config.data).tokens == ((0, 0) if file.stem == "chexgenbench" else (7, 77))


def test_first_difference_is_dotted():
    assert configs.first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert configs.first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b was 1, is 2"
    assert configs.first_difference({}, {"a": {"b": 2}}) == "a.b was absent, is 2"
    assert configs.first_difference({"a": 0}, {"a": ""}) == "a was 0, is ''"


def test_what_a_config_of_before_does_not_have_was_off():
    assert configs.first_difference({"b": ()}, {"a": 0, "c": {"d": "", "e": {}}}) is None
    assert configs.first_difference({"c": {"d": 1}}, {"c": {"d": 1, "e": False}}) is None


@pytest.mark.parametrize("verb", ["phantoms", "prepare", "cache", "train", "prompts", "sample", "convert", "evaluate"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  jaxcxr {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--config", "nowhere.py", "--workdir", "w"], "nowhere.py: no such config file"),
        (["train", "--config", "nowhere.py", "--workdir", "w", "--stop-at", "0"], "'0' may be a whole number from 1"),
        (["train", "--config", str(BASE), "--workdir", "w", "--config.stepz=1"], "stepz: no such key"),
        (["phantoms", "--out", "x", "--sizes", "3"], "--sizes: no such option"),
        (["sample", "--checkpoint", "nowhere", "--prompt", "x", "--out", "o"], "nowhere: no such file or folder"),
        (["train", "--config", str(BASE), "--workdir", "w", "--config.keep", "0"], "config.keep=0: may be 1 or more"),
        (
            ["train", "--config", str(BASE), "--workdir", "az://b/w"],
            "az://b/w: is no address of a folder; it may be gs://BUCKET",
        ),
        (["train", "--config", "az://b/c.py", "--workdir", "w"], "--config az://b/c.py: only files and folders of"),
        (["convert", "s3://b/w", "out", "--to", "orbax"], "SRC s3://b/w: only files and folders of this machine"),
        (["convert", "w", "s3://b/out", "--to", "orbax"], "DST s3://b/out: only files and folders of this machine"),
        (["evaluate", *EVALUATED, "--runs", "a", "gs://b/w"], "--runs gs://b/w: only files and folders of this"),
        (["prompts", "--out", "gs://b/p.jsonl"], "--out gs://b/p.jsonl: only files and folders of this machine"),
        (["plan", "--config", str(BASE), "--target", "v5e-16"], "give --target v5e:4x4"),
        ([], "jaxcxr: no verb is given; it may be phantoms, prepare"),
        (["--bar"], "jaxcxr: --bar: no such verb; it may be phantoms, prepare"),
        (["tra\nin"], "jaxcxr: tra in: no such verb; it may be phantoms, prepare"),
        (["prepare"], "--config, --source, --out; type for example jaxcxr prepare --config"),
        (["sample", "--checkpoint", "c", "--out", "o", "--steps", "a\nb"], "--steps: invalid int value"),
        (["sample", "--checkpoint", "c", "--prompt", "a", "--prompts", "b"], "--prompts: not allowed with"),
        (["sample", "--checkpoint", "c", "--s", "3"], "--s could match --sampler, --steps"),
        (["convert", "a", "b", "--to", "zip"], "--to: invalid choice: 'zip' (choose from"),
        (["convert", "a", "b", "--to"], "--to: expected one argument; type for example jaxcxr convert"),
        ([*PREPARE, "--workers", "0"], "--workers: '0' may be a whole number from 1 to 1,024"),
        ([*PREPARE, "--workers", "-3"], "--workers: '-3' may be a whole number from 1 to 1,024"),
        ([*PREPARE, "--workers", "9" * 5000], "may be a whole number from 1 to 1,024"),
        (["phantoms", "--out", "x", "--patients", "0"], "--patients: '0' may be a whole number from 1 to 1,000,000"),
        (["phantoms", "--out", "x", "--size", "1.5"], "--size: '1.5' may be a whole number from 64 to 512"),
        (["phantoms", "--out", "x", "--seed", "-1"], "--seed: '-1' may be a whole number from 0 to"),
        (["prompts", "--out", "x.jsonl", "--count", "-1"], "--count: '-1' may be a whole number from 1 to"),
        (["phantoms", "--out", "x", "--film", "100"], "--film: '100' may be two numbers of pixels, as 2544x3056"),
        (["phantoms", "--out", "x", "--si\nzes"], "--si zes: no such option"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_overrides_value_may_follow_a_space():
    assert _joined(["--config.a.b", "1e-5", "--config.c", "-1", "--x", "y"]) == [
        *("--config.a.b=1e-5", "--config.c=-1"),
        *("--x", "y"),
    ]
    assert _joined(["--config.a", "--config.b=2", "--config", "f.py"]) == [
        *("--config.a", "--config.b=2"),
        *("--config", "f.py"),
    ]


def test_the_version_names_what_a_report_of_a_bug_needs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    said = capsys.readouterr().out.strip()
    assert re.fullmatch(r"jaxcxr \d+\.\d+\.\d+, jax \d+\.\d+\.\d+\S*, Python 3\.\d+\.\d+\S*", said), said


def test_what_is_compiled_is_kept_in_the_users_cache_or_where_jax_is_told(monkeypatch):
    variable = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    for before, after in ((None, "/caches/jaxcxr/xla"), ("/mine", "/mine"), ("", "")):
        monkeypatch.setenv(variable, before or "")
        if before is None:
            monkeypatch.delenv(variable)
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        assert os.environ[variable] == after


def test_what_differs_of_the_bases_scheduler_is_a_line():
    changes = ["--config.model.scheduler={'prediction_type': 'v_prediction', 'rescale_betas_zero_snr': True}"]
    schedules = [
        dataclasses.asdict(describe(configs.load(ROOT / "configs" / "roentgen.py", each)).schedule)
        for each in ([], changes)
    ]
    assert schedules[0]["beta_schedule"] == "scaled_linear"
    assert schedules[1] == schedules[0] | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(("own", "share"), [(None, "0.92"), ("0.5", "0.5")])
def test_a_gpu_gives_programs_what_plans_count_on(monkeypatch, own, share):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", own or "")
    if own is None:
        monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    main(["train", "--config", "nowhere.py", "--workdir", "w"])
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == share
    assert CHIPS["h100"].memory == int(0.92 * 84_942_979_072)
