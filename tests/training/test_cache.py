"""Training on cached moments is training on images."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxcxr import interop
from jaxcxr.cache import cache
from jaxcxr.data import moments, tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.moments import Card, Moments
from jaxcxr.errors import UserError
from jaxcxr.files import locked_folder
from jaxcxr.models.vae import normalize, split_moments
from jaxcxr.training.feed import check_cache
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ae") / "run"
    train(runs.autoencoder(steps=2), workdir)
    return workdir


def frozen(base, **changes):
    return runs.diffusion(base, **changes)


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A cache of four shards and more, stored in float32."""
    folder = tmp_path_factory.mktemp("cache") / "float32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "PER_SHARD", 8)
        patch.setattr("jaxcxr.cache.PER_SHARD", 8)
        cache(frozen(base), folder, "float32")
        yield folder


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row] + [
        row["validation_loss"] for row in rows if "validation_loss" in row
    ]


def test_others_cannot_read_it(made):
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_it_holds_the_moments_of_every_record_in_order(base, made):
    prepared, cached = open_split(runs.data(), "train"), Moments(made, "train")
    assert len(cached) == len(prepared)
    assert len(list(made.glob("train-*"))) > 2
    vae = interop.load(base).vae
    from jaxcxr.data import images

    for place in (0, 7, 8, len(prepared) - 1):
        record, found = prepared[place], cached[place]
        assert found["id"] == record["id"].decode()
        assert found["prompts"] == [prompt.decode() for prompt in record["prompts"]]
        assert "input_ids" not in found
        expected = vae.encode(normalize(images.decode_png(record["image"])[None], 1))
        np.testing.assert_allclose(
            found["moments"], np.concatenate(split_moments(expected), -1)[0], rtol=1e-4, atol=1e-5
        )


def test_ids_are_kept_for_the_tokenizer_they_are_of(made):
    tokenizer = tokens.load(runs.data() / "tokenizer")
    assert Card.read(made).tokenizer == tokens.digest(tokenizer)
    cached = Moments(made, "train", tokens.digest(tokenizer))
    for place in (0, 20):
        record = cached[place]
        expected = tokens.encode(tokenizer, record["prompts"], 77)
        assert len(record["input_ids"]) == len(record["prompts"])
        np.testing.assert_array_equal(np.stack(record["input_ids"]), expected)
    with_ids = Batches(cached, tokenizer=tokenizer, seed=0, batch_size=8).batch(3)
    encoded = Batches(Moments(made, "train", "another"), tokenizer=tokenizer, seed=0, batch_size=8).batch(3)
    np.testing.assert_array_equal(with_ids["input_ids"], encoded["input_ids"])
    assert with_ids["input_ids"].dtype == encoded["input_ids"].dtype == np.int32
    tokenizer.model_max_length = 60
    assert tokens.digest(tokenizer) != Card.read(made).tokenizer


def test_training_on_it_is_training_on_images(base, made, tmp_path):
    changes = {"eval_every": 3}
    train(frozen(base, **changes), tmp_path / "online")
    train(frozen(base, **changes, **{"data.cache": str(made)}), tmp_path / "cached")
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "online"), rtol=1e-4)
    cache(frozen(base), tmp_path / "half", "bfloat16")
    assert Moments(tmp_path / "half", "train")[0]["moments"].dtype.name == "bfloat16"
    train(frozen(base, **changes, **{"data.cache": str(tmp_path / "half")}), tmp_path / "rounded")
    np.testing.assert_allclose(losses(tmp_path / "rounded"), losses(tmp_path / "online"), rtol=2e-2)


def test_caches_of_a_mixture_are_alike(base, made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    mixed = frozen(base, **{"data.cache": str(made), "data.mixture": ((str(runs.data()), 1.0, str(other)),)})
    pipeline = interop.load(base)
    weights = {name: tensor.read() for name, tensor in interop.read(base).tensors.items()}
    check_cache(mixed, pipeline, {"unet.x"}, weights)
    for what, value in (("dtype", "bfloat16"), ("shape", [1, 1, 8])):
        changed = json.loads((made / "cache.json").read_text()) | {what: value}
        (other / "cache.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"other: differs in {what} from .*float32; cache both alike"):
            check_cache(mixed, pipeline, {"unet.x"}, weights)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run that has a U-Net and a text encoder of its own."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(frozen(base, steps=2, checkpoint_every=2), workdir)
    return workdir


def finetuned(whole, **changes):
    """A run in which the U-Net alone learns."""
    config = runs.diffusion(whole, trainable=r"unet\..*", **changes)
    config.model.text_encoder, config.model.unet = {}, {}
    config.model.measure_scaling_factor = False
    return config


def test_states_of_a_frozen_text_encoder_stand_in_for_prompts(whole, tmp_path):
    changes = {"eval_every": 3, "objective.caption_dropout": 0.5}
    train(finetuned(whole, **changes), tmp_path / "online")
    cache(finetuned(whole), tmp_path / "cache", "float32", text=True)
    record = Moments(tmp_path / "cache", "train")[3]
    assert [each.shape for each in record["states"]] == [(77, 32)] * len(record["prompts"])
    config = finetuned(whole, **changes, **{"data.cache": str(tmp_path / "cache")})
    train(config, tmp_path / "cached")
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "online"), rtol=1e-4)
    with pytest.raises(UserError, match="has states of a text encoder, which are not asked for"):
        cache(finetuned(whole), tmp_path / "cache", "float32")
    config.trainable = r"(unet|text_encoder)\..*"
    with pytest.raises(UserError, match="a text encoder, which is learning here; cache without it"):
        train(config, tmp_path / "both")


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({"trainable": r"(unet|text_encoder)\..*"}, True, "text_encoder learns in this training; cache without --text"),
        ({"trainable": r"text_encoder\..*final.*"}, True, "text_encoder learns in this training; cache without --text"),
        ({"trainable": r"(unet|vae)\..*"}, False, "vae learns in this training; train without a cache"),
        ({"trainable": "("}, False, "not a regular expression"),
        ({"method": "autoencoder"}, False, "trains without a cache; it is for diffusion"),
        ({"model.text_encoder": pipelines.TEXT}, True, "describes a network that learns from scratch"),
        ({"data.views": ("PA",)}, False, r"config\.data\.views is \('PA',\), but .* was prepared with"),
    ],
)
def test_what_its_training_would_refuse_is_refused_before_anything_is_encoded(whole, tmp_path, changes, text, message):
    config = finetuned(whole)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
        for key in {"model.text_encoder"} & changes.keys():
            config.model.text_encoder = ConfigDict(changes[key])
    with pytest.raises(UserError, match=message):
        cache(config, tmp_path / "cache", "float32", text=text)
    assert not (tmp_path / "cache").exists()


def test_a_text_encoder_that_learns_is_no_matter_where_its_states_are_not_cached(whole, tmp_path):
    config = finetuned(whole)
    config.trainable = r"(unet|text_encoder)\..*"
    cache(config, tmp_path / "cache", "float32")
    assert Card.read(tmp_path / "cache").states_shape == ()


def test_a_run_on_it_goes_on_bit_for_bit(base, made, tmp_path):
    config = frozen(base, **{"data.cache": str(made)})
    train(config, tmp_path / "whole")
    for stop in (2, None):
        train(config, tmp_path / "parts", stop_at=stop)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_what_is_missing_is_told_and_made(base, made, tmp_path, capsys):
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    lost = sorted(made.glob("train-*"))[1]
    lost.unlink()
    with pytest.raises(UserError, match="not complete, 1 files are missing"):
        Moments(made, "train")
    times = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    cache(frozen(base), made, "float32")
    after = {file.name: file.read_bytes() for file in made.iterdir()}
    assert moments.msgpack.unpackb(Moments(made, "train")._records[8])[2] == Moments(made, "train")[8]["id"]
    assert after.keys() == before.keys()
    assert all(made.joinpath(name).stat().st_mtime_ns == time for name, time in times.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainable": r"(unet|vae)\..*"}, "an autoencoder that is not learning"),
        ({"data.size": 32}, "images of 16 pixels, config.data.size is 32"),
        ({"dtype": "bfloat16"}, "differs from this run in compute dtype"),
        ({"model.base": "other"}, "differs from this run in autoencoder weights;"),
    ],
)
def test_a_cache_of_something_else_is_refused(base, made, tmp_path, change, message):
    if "model.base" in change:
        train(runs.autoencoder(steps=1), tmp_path / "other")
        change = {"model.base": str(tmp_path / "other")}
    with pytest.raises(UserError, match=message):
        train(frozen(base, **{"data.cache": str(made)}, **change), tmp_path / "run")


def test_one_job_at_a_time_writes_it(base, made):
    with locked_folder(made), pytest.raises(UserError, match="another process is writing it"):
        cache(frozen(base), made, "float32")


def test_a_folder_of_something_else_is_left_alone(base, made, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="is not empty and no cache"):
        cache(frozen(base), tmp_path)
    with pytest.raises(UserError, match="holds moments in float32"):
        cache(frozen(base), made, "bfloat16")
    with pytest.raises(UserError, match="not a cache"):
        Moments(tmp_path, "train")
    with pytest.raises(UserError, match="no records in split 'holdout'"):
        Moments(made, "holdout")
    card = Card.read(made)
    assert card is not None
    assert card.dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({}, True, "run: has no text_encoder to encode with; cache without --text"),
        ({"model.base": ""}, False, r"config\.model\.base: is empty"),
    ],
)
def test_a_base_that_cannot_encode_is_told(base, tmp_path, changes, text, message):
    with pytest.raises(UserError, match=message):
        cache(frozen(base, **changes), tmp_path / "out", text=text)
    assert not (tmp_path / "out").exists()


DYING = """
import os, sys
from pathlib import Path
from jaxcxr import cache
from jaxcxr.data import moments
from tests.training import test_cache
moments.PER_SHARD = cache.PER_SHARD = 8
write, done = cache.write_shard, []
def dying(file, records):
    if len(done) == 2:
        every = list(records)
        def cut():
            yield from every[:3]
            os.kill(os.getpid(), 9)
        records = cut()
    write(file, records)
    done.append(file)
cache.write_shard = dying
config = test_cache.frozen(Path(sys.argv[1]))
config.data.path = sys.argv[3]
cache.cache(config, Path(sys.argv[2]), "float32")
"""


def test_a_killed_job_loses_nothing_that_was_finished(base, made, tmp_path):
    argv = [sys.executable, "-c", DYING, base, tmp_path / "out", runs.data()]
    done = subprocess.run(argv, capture_output=True, cwd=runs.ROOT, env={**os.environ, "PYTHONPATH": str(runs.ROOT)})
    assert done.returncode == -9, done.stderr[-2000:]
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("[!.]*.array_record")}
    assert len(finished) == 2
    cache(frozen(base), tmp_path / "out", "float32")
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
    ours, theirs = Moments(tmp_path / "out", "train"), Moments(made, "train")
    assert all((ours[place]["moments"] == theirs[place]["moments"]).all() for place in range(len(theirs)))


SHARING = """
import sys, time
from pathlib import Path
import jax
address, process, base, out, data = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process), shutdown_timeout_seconds=1)
from jaxcxr import cache
from jaxcxr.data import moments
from tests.training import test_cache
moments.PER_SHARD = cache.PER_SHARD = 8
write = cache.write_shard
def late(*args):
    time.sleep(2 * int(process))
    write(*args)
cache.write_shard = late
config = test_cache.frozen(Path(base))
config.data.path, config.batch_size = data, 1
cache.cache(config, Path(out), "float32")
"""


def test_two_processes_share_the_work_and_wait_for_one_another(base, made, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = [sys.executable, "-c", SHARING, address]
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    jobs = [
        subprocess.Popen([*argv, str(process), base, tmp_path / "out", runs.data()], cwd=runs.ROOT, env=environment)
        for process in range(2)
    ]
    assert [job.wait(300) for job in jobs] == [0, 0]
    names = {file.name for file in made.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    ours, theirs = Moments(tmp_path / "out", "train"), Moments(made, "train")
    for place in range(len(theirs)):
        assert ours[place]["id"] == theirs[place]["id"]
        np.testing.assert_allclose(ours[place]["moments"], theirs[place]["moments"], rtol=1e-5, atol=1e-6)
