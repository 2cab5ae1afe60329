import io
import os
import subprocess
import sys

import pytest
from tqdm.auto import tqdm

from jaxcxr import __main__ as cli
from jaxcxr.console import Lasting
from tests.training import jobs

# Prints and draws a bar for longer than the pipe's reader is there, then says in a file how far it came.
SCRIPT = """
import sys, time
from pathlib import Path
from tqdm.auto import tqdm
from jaxcxr.console import lasting_streams
with lasting_streams():
    for n in tqdm(range(200)):
        print("line", n, flush=n % 2 == 0)
        sys.stderr.write("x" * 1000)
        tqdm.write("line through the bar")
    print("left in the buffer")
Path(sys.argv[1]).write_text("done")
"""


def test_a_pipe_that_closes_stops_nothing(tmp_path):
    read, write = os.pipe()
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path / "done")]
    process = subprocess.Popen(argv, stdout=write, stderr=write, env=jobs.environment())
    os.close(write)
    os.close(read)
    assert process.wait(60) == 0
    assert (tmp_path / "done").read_text() == "done"


def version(stdout):
    argv = [sys.executable, "-m", "jaxcxr", "--version"]
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, env=jobs.environment(), text=True, check=False)


def test_output_that_a_full_disk_cuts_is_a_failure_and_a_closed_pipe_is_none():
    with open("/dev/full", "w") as full:
        done = version(full)
    assert done.returncode == 1
    assert done.stderr == "jaxcxr: a part of the output could not be written (No space left on device)\n"
    read, write = os.pipe()
    os.close(read)
    done = version(write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verb_whose_output_is_cut_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_main", lambda argv: print("x" * 100_000) or 0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["plan"]) == 1
    assert "could not be written" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_main", lambda argv: 2)
    assert cli.main(["plan"]) == 2


def test_other_errors_of_a_stream_are_raised():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.raises(UnicodeEncodeError):
        Lasting(stream).write("é")


def test_a_closed_stream_and_a_full_disk_drop_what_is_written():
    closed = io.StringIO()
    closed.close()
    Lasting(closed).write("x")
    with open("/dev/full", "w") as full:
        lasting = Lasting(full)
        lasting.write("x")
        lasting.flush()
        lasting.write("y" * 100_000)
        print("z", file=lasting, flush=True)
        tqdm.write("w", file=lasting)
