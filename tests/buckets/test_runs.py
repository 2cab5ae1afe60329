"""Runs, caches and samples in a bucket are those of a local disk, bit for bit, whatever kills them."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from jaxcxr import buckets, interop
from jaxcxr.__main__ import main
from jaxcxr.cache import cache
from jaxcxr.data import stage
from jaxcxr.data.loader import open_split
from jaxcxr.data.moments import Moments
from jaxcxr.errors import UserError
from jaxcxr.interop.orbax import steps
from jaxcxr.manifest import Settings
from jaxcxr.sample import sample
from jaxcxr.training.checkpoint import newest_whole
from jaxcxr.training.train import train
from jaxcxr.workdir import read_data
from tests import pipelines
from tests.training import jobs, runs

RUN = "gs://bucket/a/run"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run that was never stopped, on a local disk."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    train(runs.autoencoder(eval_every=3), workdir)
    return workdir


def upload(folder: Path, address: str) -> str:
    for file in (each for each in folder.rglob("*") if each.is_file()):
        buckets.upload(file, buckets.place(address) / file.relative_to(folder).as_posix())
    return address


def test_a_run_that_is_stopped_and_resumed_is_that_of_a_local_disk(store, local):
    workdir = buckets.place(RUN)
    assert not train(runs.autoencoder(eval_every=3), workdir, stop_at=4)
    assert steps(workdir) == [4, 3]
    assert train(runs.autoencoder(eval_every=3), workdir)
    jobs.assert_same(workdir, local)
    assert (workdir / "metrics.jsonl").read_text().count('"validation_loss"') == 3
    names = buckets.sizes(workdir)
    assert ".lock" not in names
    assert sum(name.startswith("tensorboard/events") for name in names) == 2  # one a start
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"4", "6"}
    assert train(runs.autoencoder(eval_every=3), workdir)  # says that it is done
    with pytest.raises(UserError, match="holds a run of another config"):
        train(runs.autoencoder(eval_every=3, seed=1), workdir)
    lost = next(name for name in names if name.startswith("checkpoints/6/params/d/"))
    store.delete("bucket", f"a/run/{lost}", {})
    assert newest_whole(workdir) == 4
    assert steps(workdir) == [4]
    assert any(name.startswith("checkpoints/6.damaged/") for name in buckets.sizes(workdir))


def killed_at(store, name: str, started) -> None:
    """Has the first write of an object of this name kill a process, which must be the only one to write."""

    def cut(written: str) -> bool:
        if name in written and started[0].poll() is None:
            started[0].send_signal(signal.SIGKILL)
            return True
        return False

    store.cut = cut


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_resumes_bit_for_bit(store, local, tmp_path):
    config, workdir = jobs.write_config(runs.autoencoder(eval_every=3), tmp_path / "config.py"), buckets.place(RUN)
    argv = ["train", "--config", str(config), "--workdir", RUN]
    for name in (
        "model/vae/config.json",  # the first files of a run
        "checkpoints/3/params/",  # the first checkpoint, in the middle
        "checkpoints/3/commit_success.txt",  # whole but for its marker
        "metrics.jsonl",  # before the second checkpoint
        "checkpoints/6/checksums.json",
    ):
        started = jobs.begin(argv, tmp_path / "out")
        killed_at(store, name, started)
        assert started[0].wait(240) == -signal.SIGKILL, (name, jobs.log(tmp_path / "out").read_text()[-3000:])
        store.cut = lambda name: False
        assert ".lock" in buckets.sizes(workdir)  # which the next start takes, since that process is gone
    assert steps(workdir) == [3]
    jobs.finish(jobs.begin(argv, tmp_path / "out"), tmp_path / "out")
    jobs.assert_same(workdir, local)
    assert steps(workdir) == [6, 3]


@pytest.mark.slow
def test_two_processes_train_in_one_workdir(store, tmp_path):
    config = jobs.write_config(runs.autoencoder(steps=4, checkpoint_every=2), tmp_path / "config.py")
    argv = ["train", "--config", str(config), "--workdir"]
    jobs.finish(jobs.begin([*argv, RUN], tmp_path / "a", processes=2), tmp_path / "a")
    jobs.finish(jobs.begin([*argv, str(tmp_path / "b")], tmp_path / "b", processes=2), tmp_path / "b")
    jobs.assert_same(buckets.place(RUN), tmp_path / "b")
    said = jobs.finish(jobs.begin([*argv, RUN], tmp_path / "a", processes=2), tmp_path / "a")
    assert "already trained to step 4" in said


def test_a_second_job_is_refused(store, tmp_path, capsys, monkeypatch):
    from jaxcxr import bucket_jobs
    from jaxcxr.files import locked_folder

    monkeypatch.setattr(bucket_jobs, "_RENEWED", 0.1)
    monkeypatch.setattr(bucket_jobs, "_STALE", 2.0)
    with locked_folder(buckets.place(RUN)), pytest.raises(UserError, match=f"{RUN}: another process is writing it"):
        train(runs.autoencoder(), buckets.place(RUN))


@pytest.mark.parametrize("staged", [True, False])
def test_data_in_a_bucket_are_those_of_a_local_disk(store, local, tmp_path, staged, capsys):
    address = upload(runs.data(), "gs://bucket/data")
    changes = {"data.path": address} | ({"data.stage": str(tmp_path / "stage")} if staged else {})
    train(runs.autoencoder(eval_every=3, **changes), tmp_path / "run")
    jobs.assert_same(tmp_path / "run", local)
    assert address in (tmp_path / "run" / "config.json").read_text()
    assert read_data(tmp_path / "run")[0].fingerprint == read_data(local)[0].fingerprint
    copied = [file for file in (tmp_path / "stage").rglob("*") if file.is_file()]
    assert ("stage data" in capsys.readouterr().err) == staged
    assert any(".array_record" in file.name for file in copied) == staged


def test_a_copy_is_resumed_and_its_sizes_are_checked(store, tmp_path):
    source, root = buckets.place(upload(runs.data(), "gs://bucket/data")), tmp_path / "stage"
    copied = stage.copy(source, root, quiet=True)
    wanted = buckets.sizes(source)
    assert {str(f.relative_to(copied)): f.stat().st_size for f in copied.rglob("*") if f.is_file()} == wanted
    record = next(copied.glob("records/*train*"))
    kept, whole = copied / "summary.json", record.read_bytes()
    record.write_bytes(whole[:100])  # cut short
    (copied / "of_before").write_text("")
    before = kept.stat().st_ino
    assert stage.copy(source, root, quiet=True) == copied
    assert (record.read_bytes(), kept.stat().st_ino) == (whole, before)
    assert not (copied / "of_before").exists()
    assert stage.copy(buckets.place(upload(runs.data(), "gs://bucket/b/data")), root, quiet=True) != copied


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://absent/data", "there is no bucket 'absent'; type gcloud storage buckets create gs://absent"),
        ("gs://bucket/nothing", "there is nothing there; type gcloud storage ls gs://bucket/"),
    ],
)
def test_data_that_are_not_there_are_an_error_with_what_to_type(store, tmp_path, address, message):
    for stage_folder in ("", str(tmp_path / "stage")):
        with pytest.raises(UserError, match=message):
            train(runs.autoencoder(**{"data.path": address, "data.stage": stage_folder}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("staged", [True, False])
def test_raw_data_are_refused_and_not_copied(store, tmp_path, staged):
    store.write("bucket", "raw/metadata.jsonl", b"{}", {})
    config = runs.autoencoder(**{"data.path": "gs://bucket/raw", "data.stage": str(tmp_path) if staged else ""})
    with pytest.raises(UserError, match="gs://bucket/raw: has no files of records; .* a local copy of raw data"):
        stage.staged(config)
    assert not any(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_an_error_with_what_to_do(store, tmp_path, monkeypatch):
    source = buckets.place(upload(runs.data(), "gs://bucket/data"))
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"config\.data\.stage=.*GB are to be copied.*name a folder of a larger disk"):
        stage.copy(source, tmp_path / "stage")


@pytest.mark.parametrize(
    ("denied", "workdir", "message"),
    [
        (set(), "gs://absent/run", "there is no bucket 'absent'; type gcloud storage buckets create gs://absent"),
        ({("bucket", "read")}, RUN, "permission is denied"),
        ({("bucket", "write")}, RUN, "permission is denied"),
        (set(), "s3://bucket/run", "is read, not written; write to gs://BUCKET/FOLDER"),
    ],
)
def test_a_workdir_that_cannot_be_is_one_line(store, tmp_path, capsys, monkeypatch, denied, workdir, message):
    monkeypatch.setitem(buckets._PACKAGES, "s3", ("gcsfs", "s3"))
    config = jobs.write_config(runs.autoencoder(), tmp_path / "config.py")
    store.denied |= denied
    assert main(["train", "--config", str(config), "--workdir", workdir]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxcxr")]
    assert len(said) == 1
    assert message in said[0]
    assert store.buckets["bucket"] == {}


@pytest.mark.parametrize("option", ["--out", "--checkpoint"])
def test_samples_that_cannot_be_are_one_line(store, capsys, option, tmp_path):
    options = {"--checkpoint": "phantom", "--out": str(tmp_path / "out"), "--prompt": "A chest."}
    for address, message in (("gs://absent/x", "no bucket 'absent'"), ("gs://bucket/x", "permission is denied")):
        store.denied = {("bucket", "read")}
        argv = ["sample", *(word for pair in (options | {option: address}).items() for word in pair)]
        assert main(argv) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_copy_of_a_local_run_is_refused_and_stays_as_it_is(store, local):
    upload(local, RUN)
    before = dict(store.buckets["bucket"])
    with pytest.raises(UserError, match="as in a copy of a local run; resume the run where it was written"):
        train(runs.autoencoder(eval_every=3), buckets.place(RUN))
    assert store.buckets["bucket"] == before


def test_what_a_bucket_cannot_have_is_refused_by_name(store, tmp_path, capsys):
    argv = ["sample", "--checkpoint", RUN, "--prompt", "x", "--out", str(tmp_path / "out"), "--prepared", "data"]
    assert main(argv) == 2
    assert "--prepared data: takes no tokenizer from a bucket" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config\.profile\.steps=2: no trace is written to gs://bucket/a/run"):
        train(runs.autoencoder(**{"profile.steps": 2}), buckets.place(RUN))
    with pytest.raises(
        UserError, match=r"in a bucket, a workdir of jaxcxr train on gs:// is read.*gcloud storage cp --recursive"
    ):
        interop.read("gs://bucket/nothing")


def test_a_cache_in_a_bucket_is_that_of_a_local_disk(store, local, tmp_path):
    """Its base, a run, is read in a bucket, and so are the data."""
    base = buckets.place(RUN)
    train(runs.autoencoder(eval_every=3), base)
    config = runs.diffusion(RUN, **{"data.path": upload(runs.data(), "gs://bucket/data")})
    cache(config, buckets.place("gs://bucket/cache"), "float32")
    cache(runs.diffusion(local), tmp_path / "cache", "float32")
    ours, theirs = buckets.sizes(buckets.place("gs://bucket/cache")), tmp_path / "cache"
    assert ours.keys() == {file.name for file in theirs.iterdir()} - {".lock"}
    cached, _ = stage.staged(runs.diffusion(RUN, **{"data.cache": "gs://bucket/cache"}))
    for one, other in zip(Moments(cached.data.cache, "train"), Moments(theirs, "train"), strict=True):
        assert one["id"] == other["id"]
        assert (one["moments"] == other["moments"]).all()
    shard = next(name for name in ours if "train" in name)
    store.delete("bucket", f"cache/{shard}", {})
    before = store.buckets["bucket"]["cache/cache.json"]
    cache(config, buckets.place("gs://bucket/cache"), "float32")  # makes what is missing alone
    assert f"cache/{shard}" in store.buckets["bucket"]
    assert store.buckets["bucket"]["cache/cache.json"] == before
    assert len(open_split(stage.staged(config)[0].data.path, "train")) == 50


def test_samples_in_a_bucket_are_those_of_a_local_disk(store, tmp_path):
    pipeline = interop.load(pipelines.write(tmp_path / "base"))
    rows, out = [{"prompt": text} for text in pipelines.REPORTS[:3]], buckets.place("gs://bucket/samples")
    settings = Settings(checkpoint="base", sampler="ddim", steps=2, guidance=1.0, size=16)
    sample(pipeline, rows, settings, tmp_path / "out", batch_size=2)
    store.cut = lambda name: name.endswith("00002.png")
    with pytest.raises(UserError, match=r"does not answer .*run it again"):
        sample(pipeline, rows, settings, out, batch_size=2)
    store.cut = lambda name: False
    first = store.buckets["bucket"]["samples/00000.png"]
    assert not settings.already_done(out, rows)
    sample(pipeline, rows, settings, out, batch_size=2)
    assert settings.already_done(out, rows)
    assert store.buckets["bucket"]["samples/00000.png"] == first
    names = buckets.sizes(out).keys() - {".complete"}
    assert names == {file.name for file in (tmp_path / "out").iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    with Image.open((out / "00000.png").open("rb")) as picture:
        assert picture.size == (16, 16)
    with pytest.raises(UserError, match="was begun with other settings|exists already"):
        sample(pipeline, rows[:2], settings, out, batch_size=2)
