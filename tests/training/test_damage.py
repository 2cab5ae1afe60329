"""Checkpoints that are damaged, not complete, or none at all."""

import shutil

import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import checksums
from jaxcxr.interop.orbax import latest_step, steps
from jaxcxr.training import checkpoint
from jaxcxr.training.train import train
from tests.training import jobs
from tests.training.test_restarts import autoencoder


def flip(file, place=None):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    file.write_bytes(data)


def largest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_noticed(run):
    step = run / "checkpoints" / "6"
    files = [file for file in step.glob("*/**/*") if file.is_file() and file.stat().st_size]
    assert len(files) > 20
    assert checksums.damage(step) is None
    for file in files:
        before = file.read_bytes()
        for place in {0, len(before) // 2, len(before) - 1}:
            flip(file, place)
            assert checksums.damage(step) == f"{file.relative_to(step)} is not as it was written"
            file.write_bytes(before)
    files[0].unlink()
    assert checksums.damage(step) == f"{files[0].relative_to(step)} is not as it was written"


@pytest.mark.parametrize("item", ["params", "ema", "opt_state"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_resumed_from(whole, run, capsys, item):
    file = largest(run / "checkpoints" / "6" / item)
    flip(file)
    train(autoencoder(checkpoint_every=2), run)
    said = capsys.readouterr().out
    name = file.relative_to(run / "checkpoints" / "6")
    assert f"checkpoints/6: is damaged, {name} is not as it was written; it is now " in said
    assert f"{run}: resumes from step 4" in said
    assert sorted(folder.name for folder in (run / "checkpoints").glob("[0-9]*")) == ["4", "6", "6.damaged"]
    jobs.assert_same(run, whole)


def test_damage_to_all_checkpoints_and_to_the_checksums_is_one_line(run):
    flip(largest(run / "checkpoints" / "6" / "params"))
    (run / "checkpoints" / "4" / "checksums.json").write_text("[")
    with pytest.raises(UserError, match="every checkpoint is damaged, of step 6 params/.* is not as it was written"):
        train(autoencoder(checkpoint_every=2), run)
    with pytest.raises(UserError, match=r"checkpoints/6: is damaged, params/.*; copy it again"):
        interop.read(run)
    assert steps(run) == [6, 4]


def test_reading_a_damaged_checkpoint_names_the_one_before(run):
    flip(largest(run / "checkpoints" / "6" / "ema"))
    with pytest.raises(UserError, match=r"6: is damaged, ema/.*; step 4 is whole; move .*6 away to use that one"):
        interop.read(run)
    interop.read(run, ema=False)
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "6.aside")
    interop.read(run)


def test_a_converted_checkpoint_has_checksums_too(run, tmp_path):
    interop.orbax.write(interop.read(run), tmp_path / "orbax")
    interop.read(tmp_path / "orbax")
    flip(largest(tmp_path / "orbax" / "checkpoints" / "0"))
    with pytest.raises(UserError, match="0: is damaged, params/.*copy it again"):
        interop.read(tmp_path / "orbax")


def test_a_checkpoint_without_checksums_is_read_and_one_line_where_it_cannot_be(whole, run):
    for step in (4, 6):
        (run / "checkpoints" / str(step) / "checksums.json").unlink()
    shutil.rmtree(run / "checkpoints" / "6")
    train(autoencoder(checkpoint_every=2), run)
    jobs.assert_same(run, whole)
    (run / "checkpoints" / "6" / "checksums.json").unlink()
    for file in (run / "checkpoints" / "6" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="6: cannot be restored .*; move it away to resume from step 4"):
        train(autoencoder(checkpoint_every=2, steps=8), run)
    with pytest.raises(UserError, match="params: cannot be read .* step 4 is whole; move .*6 away to use that one"):
        interop.read(run)


def test_what_is_no_checkpoint_among_the_checkpoints_is_in_nobodys_way(whole, run, tmp_path, capsys):
    """A file where the next checkpoint will be, folders with names of steps, and others."""
    folder = run / "checkpoints"
    for name in ("8", "6.damaged", "tmp", "5.orbax-checkpoint-tmp"):
        (folder / name).write_text("junk")
    for name in ("7", "99999999999"):
        (folder / name).mkdir()
    (folder / "7" / "notes.txt").write_text("junk")
    assert steps(run) == [6, 4]
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "orbax"]) == 0
    assert latest_step(tmp_path / "out") == 0
    train(autoencoder(checkpoint_every=2, steps=8), run)
    assert steps(run) == [8, 6]
    said = capsys.readouterr().out
    for name in ("7", "8", "99999999999"):
        assert f"checkpoints/{name}: is no checkpoint; it is now {folder / name}.damaged" in said
    assert (folder / "8.damaged").read_text() == "junk"
    assert (folder / "7.damaged" / "notes.txt").is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
@pytest.mark.parametrize("lost", ["params", "ema", "checksums.json", "params/manifest.ocdbt"])
def test_a_newest_checkpoint_that_lost_a_part_is_refused_with_the_name_of_the_one_before(run, capsys, lost):
    part = run / "checkpoints" / "6" / lost
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    if lost == "checksums.json":
        shutil.rmtree(part.with_name("params") / "d")
    assert main(["convert", str(run), str(run / "out"), "--to", "orbax"]) == 2
    error = capsys.readouterr().err
    assert f"step 4 is whole; move {run}/checkpoints/6 away to use that one" in error
    assert error.count("\n") == 1


def test_a_run_that_lost_its_checkpoints_but_not_other_files_beside_them_does_not_start_anew(run):
    for step in steps(run):
        shutil.rmtree(run / "checkpoints" / str(step))
    (run / "checkpoints" / "tmp").mkdir()
    (run / "checkpoints" / "6").write_text("junk")
    with pytest.raises(UserError, match="no checkpoint, but metrics.jsonl reaches step 6; put the checkpoints back"):
        train(autoencoder(checkpoint_every=2), run)


@pytest.mark.slow
def test_two_processes_agree_on_what_is_damaged(tmp_path):
    config, run = jobs.write_config(autoencoder(checkpoint_every=2), tmp_path / "config.py"), tmp_path / "run"
    jobs.finish(jobs.start(config, run, "--stop-at", "4", processes=2, devices=2), run)
    for file in (run / "checkpoints" / "4" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            flip(file)
    said = jobs.finish(jobs.start(config, run, processes=2, devices=2), run)
    assert f"{run}: resumes from step 2" in said
    assert "resumes from" not in jobs.log(run, 1).read_text()
    assert latest_step(run) == 6
    assert all(checksums.read(run / "checkpoints" / str(step)) for step in steps(run))


# --- several processes


def test_every_process_asks_the_others_once_whatever_it_has_read(run):
    step, asked = run / "checkpoints" / "6", []

    def look(number, others=2**31 - 1):
        asked.append(number)
        return checksums.damage(step, part=(number, 2), agree=lambda own: asked.append(own) or min(own, others))

    assert (look(0), look(1)) == (None, None)
    files = sorted(checksums.read(step))
    flip(step / files[3], 0)
    assert look(0) is None
    assert look(1) == f"{files[3]} is not as it was written"
    assert look(0, 3) == f"{files[3]} is not as it was written"
    (step / "checksums.json").write_text("[")
    assert look(0) == "checksums.json cannot be read"
    (step / "checksums.json").unlink()
    assert look(0, -1) == "checksums.json cannot be read"
    assert look(0, 3) == "a file is not as it was written"
    assert len(asked) == 2 * 8


def test_checkpoints_are_those_that_the_first_process_lists(run, monkeypatch):
    """Another process that still gets an older listing looks at the same ones."""
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "3")
    monkeypatch.setattr(checkpoint, "from_first", lambda make: [6, 4])
    flip(largest(run / "checkpoints" / "6" / "params"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "on_first", lambda do: None)
        assert checkpoint.newest_whole(run) == 4
