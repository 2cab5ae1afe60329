import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading

import pytest

from jaxcxr import files
from jaxcxr.errors import UserError
from jaxcxr.files import begun_folder, inside, locked_folder, new_file, new_folder, remove_unfinished, replace_file


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


def killed_while_writing(kind, path):
    """Has another process begin to write `path`, and kills it in the middle."""
    script = f"""
import os, signal, sys
from pathlib import Path
from jaxcxr.files import {kind}
with {kind}(sys.argv[1]) as partial:
    (partial / "half" if partial.is_dir() else partial).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:  # noqa: PT012
        (folder / "half").write_text("")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "whole").exists()
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(UserError, match="out: cannot be written"), new_file(tmp_path / "sub" / "out") as file:  # noqa: PT012
        file.write_text("half")
        raise OSError(28, "No space left on device")
    assert not list((tmp_path / "sub").iterdir())
    with new_file(tmp_path / "sub" / "out") as file:
        file.write_text("whole")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["out"]
    with pytest.raises(UserError, match="exists already"), new_file(tmp_path / "sub" / "out"):
        pass


def test_what_a_failed_writers_thread_still_adds_is_removed_too(tmp_path):
    def write(folder):
        with contextlib.suppress(OSError):
            for i in range(3_000):
                (folder / str(i)).mkdir()

    def fail():
        with new_folder(tmp_path / "out") as folder:
            thread = threading.Thread(target=write, args=(folder,))
            threads.append(thread)
            thread.start()
            while not list(folder.iterdir()):
                pass
            raise RuntimeError

    threads = []
    with pytest.raises(RuntimeError):
        fail()
    threads[0].join()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["new_folder", "new_file"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, kind):
    killed_while_writing(kind, tmp_path / "out")
    killed_while_writing(kind, tmp_path / "other")
    (tmp_path / ".out.partial-0123abcd").write_text("of an older version")
    (tmp_path / ".out.partial-notes").write_text("of nobody here")
    assert len(list(tmp_path.iterdir())) == 4
    with getattr(files, kind)(tmp_path / "out") as partial:
        (partial / "whole" if kind == "new_folder" else partial).write_text("")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert (found[0][:15], found[1:]) == (".other.partial-", [".out.partial-notes", "out"])
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial-notes", "out"]


def test_what_a_living_writer_writes_is_not_removed(tmp_path):
    with new_file(tmp_path / "out") as first:
        first.write_text("first")
        with new_file(tmp_path / "out") as second:
            second.write_text("second")
            remove_unfinished(tmp_path)
            assert first.exists()
            assert second.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_removed_on_a_file_system_without_locks(tmp_path, monkeypatch):
    killed_while_writing("new_folder", tmp_path / "out")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with new_folder(tmp_path / "out"):
        pass
    with begun_folder(tmp_path / "begun", "a"), locked_folder(tmp_path / "locked"):
        pass
    found = sorted(path.name for path in tmp_path.iterdir())
    assert (found[0][:13], found[1:]) == (".out.partial-", ["begun", "locked", "out"])


def test_what_was_begun_is_taken_up_by_the_same_job_alone(tmp_path):
    def interrupt(identity, *names):
        with begun_folder(tmp_path / "out", identity) as partial:
            for name in names:
                (partial / name).write_text("")
            raise KeyboardInterrupt

    for identity, names in (("a", ()), ("b", ("one",))):  # nothing of "a" is lost
        with pytest.raises(KeyboardInterrupt):
            interrupt(identity, *names)
    with pytest.raises(UserError, match="begun with other settings"), begun_folder(tmp_path / "out", "a"):
        pass
    with begun_folder(tmp_path / "out", "b") as partial:
        assert (partial / "one").exists()
        with pytest.raises(UserError, match="another process"), begun_folder(tmp_path / "out", "b"):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]


def test_what_was_begun_is_moved_aside_in_place_of_what_was_there_before(tmp_path):
    partial, old = tmp_path / ".out.partial", tmp_path / ".out.partial.old"

    def interrupt(identity):
        with begun_folder(tmp_path / "out", identity, private=True, anew=True):
            (partial / "records").mkdir()
            (partial / "records" / identity).write_text("")
            raise KeyboardInterrupt

    for identity in ("a", "b", "c"):
        with pytest.raises(KeyboardInterrupt):
            interrupt(identity)
    assert [path.name for path in (old / "records").iterdir()] == ["b"]
    assert [path.name for path in (partial / "records").iterdir()] == ["c"]
    assert (old / ".identity").read_text() == "b"
    shutil.rmtree(old)
    old.mkdir()
    (old / "thesis").write_text("keep")
    with (
        pytest.raises(UserError, match=r"partial\.old: is not a folder of an interrupted run"),
        begun_folder(tmp_path / "out", "d", anew=True),
    ):
        pass
    assert (old / "thesis").read_text() == "keep"
    assert (partial / "records" / "c").exists()


@pytest.mark.parametrize("what", ["a link", "a broken link", "a foreign folder", "a file", "a linked identity"])
def test_what_is_in_the_way_of_a_begun_folder_is_neither_followed_nor_changed(tmp_path, what):
    elsewhere, partial = tmp_path / "elsewhere", tmp_path / ".out.partial"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("keep")
    if what in ("a link", "a broken link"):
        partial.symlink_to(elsewhere if what == "a link" else tmp_path / "nowhere")
    elif what == "a file":
        partial.write_text("keep")
    else:
        partial.mkdir()
        (partial / "notes").write_text("keep")
    if what == "a linked identity":
        (partial / ".identity").symlink_to(elsewhere / "mine")
    with (
        pytest.raises(UserError, match=r"\.out\.partial: is not a folder of an interrupted run; check"),
        begun_folder(tmp_path / "out", "a"),
    ):
        pass
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"keep"}
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


def test_replacing_a_file_follows_no_link(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("keep")
    for name in ("page", ".page.partial", ".page.partial-0123abcd"):
        (tmp_path / name).symlink_to(mine)
    replace_file(tmp_path / "page", b"new")
    assert mine.read_text() == "keep"
    assert (tmp_path / "page").read_text() == "new"
    assert not (tmp_path / "page").is_symlink()


def test_who_can_read_what_is_private(tmp_path):
    with new_folder(tmp_path / "new", private=True) as partial:
        assert (mode(partial), mode(partial.parent)) == ("0o700", "0o700")
    with begun_folder(tmp_path / "begun", "a", private=True) as partial:
        assert mode(partial) == "0o700"
    with locked_folder(tmp_path / "above" / "locked", private=True):
        pass
    with new_file(tmp_path / "file", private=True) as partial:
        partial.write_text("")
        assert mode(partial.parent) == "0o700"
    replace_file(tmp_path / "replaced", b"", private=True)
    folders = [tmp_path / "new", tmp_path / "begun", tmp_path / "above" / "locked"]
    assert [mode(folder) for folder in folders] == ["0o700"] * 3
    assert [mode(tmp_path / name) for name in ("file", "replaced")] == ["0o600"] * 2


def test_who_can_read_what_is_not_private(tmp_path):
    with new_folder(tmp_path / "new") as partial:
        assert mode(partial.parent) == "0o700"  # nobody else sees what is not whole
    with new_file(tmp_path / "file") as partial:
        partial.write_text("")
    replace_file(tmp_path / "replaced", b"")
    assert [mode(tmp_path / name) for name in ("new", "file", "replaced")] == ["0o755", "0o644", "0o644"]


def test_a_folder_that_exists_keeps_its_mode(tmp_path):
    for name in ("new", "begun", "locked"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o2750)
    with new_folder(tmp_path / "new", private=True) as partial:
        assert mode(partial.parent) == "0o700"
    with begun_folder(tmp_path / "begun", "a", private=True), locked_folder(tmp_path / "locked", private=True):
        pass
    assert [mode(tmp_path / name) for name in ("new", "begun", "locked")] == ["0o2750"] * 3
    replace_file(tmp_path / "file", b"", private=True)
    (tmp_path / "file").chmod(0o640)
    replace_file(tmp_path / "file", b"again", private=True)
    assert mode(tmp_path / "file") == "0o640"


def test_a_name_leads_to_a_file_inside_of_its_folder_alone(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "out.png", folder / "in.png", folder / "sub" / "in.png"):
        file.write_text("")
    (folder / "linked.png").symlink_to(tmp_path / "out.png")
    (folder / "well.png").symlink_to("sub/in.png")
    os.mkfifo(folder / "pipe")
    for name in ("in.png", "sub/in.png", "sub/../in.png", "well.png"):
        assert inside(folder, name).name == "in.png"
    for name in ("../out.png", str(tmp_path / "out.png"), str(folder / "in.png"), "sub/../../out.png", "linked.png"):
        with pytest.raises(UserError, match="outside"):
            inside(folder, name)
    for name in ("gone.png", "sub", "pipe", "", "in.png/x", "a\0b", "\ud800", "x" * 10_000):
        with pytest.raises(UserError, match="has no file"):
            inside(folder, name)
