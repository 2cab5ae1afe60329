import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxcxr import bucket_jobs, buckets
from jaxcxr.errors import UserError
from jaxcxr.files import begun_folder, is_whole, locked_folder, new_file, new_folder, replace_file


@pytest.fixture
def folder(store):
    return buckets.place("gs://bucket/a/run")


def names(store):
    return sorted(store.buckets["bucket"])


def child(script: str, *argv: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", script, *argv], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_path_in_a_bucket_does_what_a_local_one_does(folder, store):
    assert not folder.exists()
    assert not (folder / "file").is_file()
    (folder / "sub" / "file").write_bytes(b"two")
    (folder / "file").write_text("größe")
    assert (folder / "file").read_text() == "größe"
    assert (folder / "file").is_file()
    assert folder.is_dir()
    assert not folder.is_file()
    assert sorted(each.name for each in folder.iterdir()) == ["file", "sub"]
    assert str(folder.absolute().resolve() / "file") == "gs://bucket/a/run/file"
    assert buckets.sizes(folder) == {"file": 7, "sub/file": 3}
    (folder / "file").unlink()
    (folder / "file").unlink(missing_ok=True)
    assert names(store) == ["a/run/sub/file"]


def test_listings_have_more_than_a_page_and_are_never_old(folder, store):
    for number in range(120):
        store.write("bucket", f"a/run/{number:03}", b"", {})
    assert len(list(folder.iterdir())) == 120
    store.write("bucket", "a/run/new", b"", {})  # by another process
    assert len(list(folder.iterdir())) == len(buckets.sizes(folder)) == 121
    buckets.remove(folder)
    assert not folder.exists()
    assert names(store) == []


def test_a_folder_is_whole_when_its_marker_is_there(folder, store):
    with pytest.raises(RuntimeError), new_folder(folder) as path:  # noqa: PT012
        (path / "half").write_bytes(b"")
        raise RuntimeError
    assert names(store) == []
    store.write("bucket", "a/run/left", b"", {})  # by one that was killed
    with new_folder(folder) as path:
        (path / "whole").write_bytes(b"")
        assert not is_whole(folder)
    assert is_whole(folder)
    assert names(store) == ["a/run/.complete", "a/run/whole"]
    with pytest.raises(UserError, match="exists already"), new_folder(folder):
        pass


def test_a_file_is_there_whole_or_not_at_all(folder, store):
    with pytest.raises(RuntimeError), new_file(folder / "file") as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise RuntimeError
    store.cut = lambda name: name.endswith("file")
    with pytest.raises(UserError, match="does not answer .*cut off.*; run it again"), new_file(folder / "file") as path:
        path.write_bytes(b"whole")
    assert names(store) == []
    store.cut = lambda name: False
    with new_file(folder / "file") as path:
        path.write_bytes(b"whole")
    assert (folder / "file").read_bytes() == b"whole"
    replace_file(folder / "file", b"other")
    assert (folder / "file").read_bytes() == b"other"
    with pytest.raises(UserError, match="exists already"), new_file(folder / "file"):
        pass


def test_a_begun_folder_resumes_with_the_same_identity_alone(folder, store):
    with pytest.raises(RuntimeError), begun_folder(folder, "one") as path:  # noqa: PT012
        (path / "half").write_bytes(b"")
        raise RuntimeError
    with pytest.raises(UserError, match="begun with other settings.*gcloud storage rm"), begun_folder(folder, "two"):
        pass
    with begun_folder(folder, "one") as path:
        assert (path / "half").is_file()
        assert not is_whole(folder)
    assert is_whole(folder)
    assert names(store) == ["a/run/.complete", "a/run/half"]


HOLD = """
import sys, time
from jaxcxr import bucket_jobs, buckets
bucket_jobs._RENEWED = 0.2
from jaxcxr.files import locked_folder
with locked_folder(buckets.place(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_folder_and_a_killed_one_does_not(folder, store, monkeypatch):
    first = child(HOLD, str(folder))
    try:
        assert first.stdout.readline() == "held\n"
        monkeypatch.setattr(bucket_jobs, "_STALE", 2.0)
        with pytest.raises(UserError, match="gs://bucket/a/run: another process"), locked_folder(folder):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        monkeypatch.setattr(bucket_jobs, "_STALE", 1000.0)  # it is known to be gone: nothing is waited for
        with locked_folder(folder):
            assert names(store) == ["a/run/.lock"]
        assert names(store) == []
    finally:
        first.kill()


def test_a_lock_of_another_machine_is_taken_when_it_is_not_renewed(folder, store, monkeypatch):
    monkeypatch.setattr(bucket_jobs, "_STALE", 0.5)
    store.write("bucket", "a/run/.lock", b'{"pid": "1", "boot": "other", "namespace": "x", "started": "1"}', {})
    with locked_folder(folder):
        pass
    assert names(store) == []


def test_a_process_whose_lock_was_taken_ends(folder, store):
    first = child(HOLD, str(folder))
    assert first.stdout.readline() == "held\n"
    store.write("bucket", "a/run/.lock", b"another's", {})
    assert first.wait(20) == 1
    assert store.buckets["bucket"]["a/run/.lock"].data == b"another's"


def test_a_renewal_whose_answer_was_lost_is_no_other_job(folder, store):
    first = child(HOLD, str(folder))
    try:
        assert first.stdout.readline() == "held\n"
        for _ in range(3):
            own = store.write("bucket", "a/run/.lock", store.buckets["bucket"]["a/run/.lock"].data, {})
            end = time.monotonic() + 20
            while (now := store.buckets["bucket"]["a/run/.lock"].generation) == int(own["generation"]):
                assert first.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            assert now > int(own["generation"])
    finally:
        first.kill()


def test_of_two_that_begin_at_once_one_holds_a_folder(folder, store, monkeypatch):
    monkeypatch.setattr(bucket_jobs, "_STALE", 0.2)
    monkeypatch.setattr(bucket_jobs, "_RENEWED", 0.05)
    took, refused, wait = [], [], threading.Barrier(4)

    def take():
        wait.wait()
        try:
            with locked_folder(folder):
                took.append(1)
                threading.Event().wait(2)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(took), len(refused)) == (1, 3)


def test_a_spool_uploads_what_changed_and_passes_over_what_a_logger_removes(folder, store, monkeypatch):
    spool, uploaded, upload = buckets.Spool(folder), [], buckets.upload
    for name in ("a", "b/c", "temporary"):
        (spool.folder / name).parent.mkdir(exist_ok=True)
        (spool.folder / name).write_text(name)

    def removed_first(source, target):
        uploaded.append(source.name)
        if source.name == "temporary":
            source.unlink()
        upload(source, target)

    monkeypatch.setattr(buckets, "upload", removed_first)
    spool.push()
    assert names(store) == ["a/run/a", "a/run/b/c"]
    (spool.folder / "a").write_text("more")
    uploaded.clear()
    spool.push(every=60.0)  # too soon
    assert uploaded == []
    spool.close()
    assert uploaded == ["a"]
    assert (folder / "a").read_text() == "more"


@pytest.mark.parametrize("do", [buckets.check, lambda path: replace_file(path / "x", b""), lambda p: held(p)])
def test_a_bucket_that_is_not_there_is_an_error_with_what_to_type(store, do):
    with pytest.raises(UserError, match="no bucket 'absent'; type gcloud storage buckets create gs://absent"):
        do(buckets.place("gs://absent/run"))


@pytest.mark.parametrize("do", [lambda path: replace_file(path / "x", b""), lambda path: held(path)])
def test_a_denied_permission_is_an_error_with_what_to_type(folder, store, do):
    store.denied = {("bucket", "write")}
    with pytest.raises(UserError, match=r"permission is denied .*; type gcloud storage .*roles/storage.objectUser"):
        do(folder)
    store.denied = {("bucket", "read")}
    with pytest.raises(UserError, match="permission is denied"):
        buckets.check(folder)


def held(path):
    with locked_folder(path):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket", "names a bucket alone; give a folder in it, as gs://bucket/FOLDER"),
        ("az://bucket/run", "may be gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or local"),
    ],
)
def test_other_addresses_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        buckets.place(text)


def test_a_package_that_is_not_installed_is_an_error_with_what_to_type(monkeypatch):
    monkeypatch.setitem(buckets._PACKAGES, "s3", ("no_such_package", "s3"))
    with pytest.raises(UserError, match=r"needs the package no_such_package; type pip install 'jaxcxr\[s3\]'"):
        buckets.place("s3://bucket/run")
