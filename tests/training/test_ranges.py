import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.training import ranges, schema
from tests.training.runs import ROOT

BASE = ROOT / "configs" / "base.py"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=0"], "config.steps=0: may be 1 or more"),
        (["batch_size=-8"], "config.batch_size=-8: may be 1 or more"),
        (["accumulation=0"], "config.accumulation=0: may be 1 or more"),
        (["keep=0"], "config.keep=0: may be 1 or more"),
        (["profile.after=0"], "config.profile.after=0: may be 1 or more"),
        (["seed=-1"], "config.seed=-1: may be from 0 to 2^32 - 1"),
        (["seed=4294967296"], "config.seed=4294967296: may be from 0"),
        (["skip_nonfinite=-1"], "config.skip_nonfinite=-1: may be 0 or more"),
        (["optimizer.learning_rate=-1"], "config.optimizer.learning_rate=-1.0: may be 0 or more"),
        (["optimizer.clip_norm=-1"], "config.optimizer.clip_norm=-1.0: may be 0 or more"),
        (["optimizer.warmup_steps=-5"], "config.optimizer.warmup_steps=-5: may be 0 or more"),
        (["optimizer.b1=1"], "config.optimizer.b1=1.0: may be 0 or more and less than 1"),
        (["ema_decay=2"], "config.ema_decay=2.0: may be from 0 to 1"),
        (["objective.caption_dropout=2"], "config.objective.caption_dropout=2.0: may be from 0 to 1"),
        (["objective.min_snr_gamma=-5"], "config.objective.min_snr_gamma=-5.0: may be 0 or more"),
        (["objective.timestep_bias_multiplier=0"], "config.objective.timestep_bias_multiplier=0.0: may be more than 0"),
        (["objective.timestep_bias_portion=2"], "config.objective.timestep_bias_portion=2.0: may be from 0 to 1"),
        (["eval_batches=0"], "config.eval_batches=0: may be 1 or more, or config.eval_every 0"),
        (["samples.prompts=()"], "config.samples.prompts=(): wants a prompt, or config.sample_every 0"),
        (["optimizer.name=schedule_free", "optimizer.b1=0"], "config.optimizer.b1=0.0: is more than 0 for"),
    ],
)
def test_a_number_out_of_its_range_is_told(overrides, message):
    with pytest.raises(UserError) as error:
        ranges.check(configs.load(BASE, [f"--config.{override}" for override in overrides]))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["eval_every=0", "eval_batches=0"],
        ["sample_every=0", "samples.prompts=()"],
        ["method=autoencoder", "samples.prompts=()"],
        ["optimizer.b1=0", "optimizer.clip_norm=0", "ema_decay=1", "objective.caption_dropout=1"],
    ],
)
def test_the_ends_of_ranges_and_what_is_not_used_are_let_be(overrides):
    ranges.check(configs.load(BASE, [f"--config.{override}" for override in overrides]))


def test_not_a_number_is_in_no_range():
    for _, fits, _ in ranges.RANGES:
        assert not fits(float("nan"))


@pytest.mark.parametrize(
    "verb",
    [
        ["train", "--workdir", "out"],
        ["cache", "--out", "out"],
        ["plan", "--target", "cpu:1"],
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_looks_first(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "--config", str(BASE), "--config.keep=0"]) == 2
    assert capsys.readouterr().err.endswith("config.keep=0: may be 1 or more\n")
    assert not list(tmp_path.iterdir())


def test_the_types_know_every_key_of_base_with_its_default():
    base, ours = configs.load(BASE).to_dict(), dataclasses.asdict(schema.Run())
    read_by_training = {field.name for field in dataclasses.fields(schema.Data)}
    base["data"] = {key: value for key, value in base["data"].items() if key in read_by_training}
    assert ours == base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "config: Expected `int`, got `str`, at `steps`"),
        ({"keep": True}, "config: Expected `int`, got `bool`, at `keep`"),
        ({"samples.prompts": "one"}, "config: Expected `array`, got `str`, at `samples.prompts`"),
        ({"samples.prompts": (1,)}, "config: Expected `str`, got `int`, at `samples.prompts"),
        ({"samples.prompts": ("\ud800",)}, r"config\.samples\.prompts\[0\]: has half a character"),
        ({"model.vae": ConfigDict({1: 2})}, "config: Expected `str`"),
        ({"steps": 2**31}, r"config\.steps=2147483648: may be at most 2\^31 - 1"),
        ({"batch_size": 2**21}, r"config\.batch_size=2097152: may be at most 2\^20"),
        ({"mesh.data": 10**30}, r"config\.mesh\.data=1000000000000000000000000000000: may be at most 2\^20"),
    ],
)
def test_a_value_of_another_type_or_much_too_large_is_told(changes, message):
    config = configs.load(BASE)
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message) as error:
        ranges.check(config)
    assert "\n" not in str(error.value)


def test_a_key_that_is_absent_is_named():
    config = configs.load(BASE)
    with config.unlocked():
        del config.optimizer["rates"]
    with pytest.raises(UserError, match=r"config\.optimizer\.rates: is absent; a config has every key of configs/base"):
        ranges.check(config)


def test_a_config_of_before_keys_were_there_gets_them():
    old = json.loads(configs.to_json(configs.load(BASE)))
    del old["skip_nonfinite"], old["optimizer"]["rates"], old["profile"]
    config = schema.completed(old, "config.json")
    ranges.check(config)
    assert (config.skip_nonfinite, config.optimizer.rates, config.profile.after) == (0, (), 10)
