"""The work of preparing on many processes, interrupted and gone on with."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from trees import mimic_tree, rows, small_config

from jaxcxr import files
from jaxcxr.data import shards
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.data.settings import Settings
from jaxcxr.data.source import open_source
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError


def contents(out: Path) -> dict[str, object]:
    """The records of a prepared folder by split, in order, and every other file."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    splits = [split for split, count in Summary.require(out).splits.items() if count]
    records = {split: list(open_split(out, split)) for split in splits}
    lengths = {name: len(data) for name, data in files.items() if "array_record" in name}
    return files | lengths | records  # the bytes of equal ArrayRecord files are not


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "PER_SHARD", 3)


def test_processes_and_beam_write_what_one_process_writes(tmp_path, small_shards):
    tree = mimic_tree(tmp_path / "raw", rows())
    prepare(small_config(), tree, tmp_path / "one", workers=1)
    prepare(small_config(), tree, tmp_path / "two", workers=2)
    one = contents(tmp_path / "one")
    assert sum(name.startswith("records/radiographs-train") for name in one) == 4
    assert contents(tmp_path / "two") == one
    pytest.importorskip("apache_beam")
    prepare(small_config(), tree, tmp_path / "beam", beam=["--runner=DirectRunner"])
    assert contents(tmp_path / "beam") == one


DYING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from trees import small_config
from jaxcxr.data import prepare, shards
shards.PER_SHARD = 3
left = int(sys.argv[4])
def counted(owner, name):
    known = getattr(owner, name)
    def call(*args, **named):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        return known(*args, **named)
    setattr(owner, name, call)
for owner, name in ((shards, "make_record"), (Path, "replace"), (Path, "write_text"), (Path, "unlink")):
    counted(owner, name)
prepare.prepare(small_config(), Path(sys.argv[2]), Path(sys.argv[3]), workers=1)
"""


@pytest.mark.slow
def test_a_job_killed_anywhere_goes_on_to_the_same_end(tmp_path, small_shards):
    tree = mimic_tree(tmp_path / "raw", rows())
    whole, out = prepare(small_config(), tree, tmp_path / "whole", workers=1), tmp_path / "out"
    killed = 0
    for calls in (1, 2, 4, 9, 15, 30, 12, 4, 7, 10, 1000):
        argv = [sys.executable, "-c", DYING, Path(__file__).parent, tree, out, str(calls)]
        ended = subprocess.run(argv, capture_output=True, cwd=Path(__file__).parents[2])
        assert ended.returncode in (0, -9), ended.stderr
        if ended.returncode == 0:
            break
        killed += 1
        assert not out.exists()
    assert killed > 7
    assert contents(out) == contents(tmp_path / "whole")
    assert Summary.require(out) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "whole", "out"}


def test_an_interrupted_run_goes_on_from_what_is_finished(tmp_path, small_shards, monkeypatch):
    tree = mimic_tree(tmp_path / "raw", rows())
    prepare(small_config(), tree, tmp_path / "whole")
    make_record, made = shards.make_record, []

    def interrupted(candidate, *others):
        if len(made) == 10:
            raise KeyboardInterrupt
        made.append(candidate.id)
        return make_record(candidate, *others)

    monkeypatch.setattr(shards, "make_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(small_config(), tree, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    finished, made[:] = made[:9], [""]
    monkeypatch.setattr(
        shards, "make_record", lambda candidate, *o: made.append(candidate.id) or make_record(candidate, *o)
    )
    prepare(small_config(), tree, tmp_path / "out")
    assert not set(finished) & set(made), "three shards of three were finished"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw", "whole"]


def test_what_was_begun_with_other_settings_is_moved_aside_with_a_line(tmp_path, small_shards, monkeypatch, capsys):
    tree = mimic_tree(tmp_path / "raw", rows())
    for row in rows()[:3]:
        next((tree / "mimic-cxr-jpg").rglob(f"{row.dicom}.jpg")).unlink()
    with pytest.raises(UserError, match=r"out\.quarantine\.jsonl lists the bad rows"):
        prepare(small_config(max_bad_share=0.1), tree, tmp_path / "out")
    begun = {path.name: path.read_bytes() for path in (tmp_path / ".out.partial").rglob("*") if path.is_file()}
    assert any("array_record" in name for name in begun)
    capsys.readouterr()
    config = small_config(views=("AP",))
    summary = prepare(config, tree, tmp_path / "out")
    told = [line for line in capsys.readouterr().err.splitlines() if "other settings" in line]
    told_first = f"{tmp_path}/.out.partial: was begun with other settings or by another version"
    assert told == [f"{told_first}; moved to {tmp_path}/.out.partial.old; starting again"]
    old = tmp_path / ".out.partial.old"
    assert {path.name: path.read_bytes() for path in old.rglob("*") if path.is_file()} == begun
    assert stat.S_IMODE(old.stat().st_mode) == 0o700
    assert summary == prepare(config, tree, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "out")
    old.rename(tmp_path / ".out.partial")  # it can be resumed still
    prepare(small_config(max_bad_share=0.2), tree, tmp_path / "out")
    assert "other settings" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "raw"]


def test_a_damaged_account_of_a_shard_is_named(tmp_path, small_shards):
    tree = mimic_tree(tmp_path / "raw", rows())
    next((tree / "mimic-cxr-jpg").rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="data.max_bad_share"):
        prepare(small_config(max_bad_share=0.0), tree, tmp_path / "out")
    account = next((tmp_path / ".out.partial").glob("*.json"))
    account.write_text("[{}, [], []]")
    with pytest.raises(UserError, match=rf"{account.name}: .*missing required field.*remove the file and run it again"):
        prepare(small_config(max_bad_share=0.0), tree, tmp_path / "out")


def test_a_shard_made_twice_stays(tmp_path, small_shards):
    source = open_source(mimic_tree(tmp_path / "raw", rows()), Settings.from_config(small_config()))
    maker, (shard, *_) = shards.Maker(source, tmp_path / "out"), shards.cut(source.candidates(Ledger()))
    assert maker(shard) == len(shard.members)
    file = tmp_path / "out" / shards.RECORDS / shard.file_name
    written = file.stat().st_mtime_ns
    assert maker(shard) == len(shard.members)
    assert file.stat().st_mtime_ns == written


def test_two_jobs_do_not_write_one_folder(tmp_path):
    with files.begun_folder(tmp_path / "out", "a"), pytest.raises(UserError, match="another process is writing it"):
        prepare(small_config(), mimic_tree(tmp_path / "raw", rows()), tmp_path / "out")
