import contextlib
import threading

import pytest

from jaxcxr.errors import UserError
from jaxcxr.files import new_file, new_folder


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
