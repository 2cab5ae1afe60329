import signal
import subprocess
import sys

import pytest

from tests.parallel.test_processes import free_address, start
from tests.training.runs import ROOT

ASKED_WHILE_AT_WORK = """
import os, signal, sys, threading, time
from jaxcxr.errors import UserError
from jaxcxr.training.stopping import Stopping
with Stopping() as stopping:
    stopping.started()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert stopping.unless_asked(time.sleep, 400) is None
    assert stopping.agreed(1)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "code"), [("pass", 0), ("raise UserError('the disk is full')", 2), ("raise ValueError('a bug')", 1)]
)
def test_a_run_that_leaves_work_behind_ends_with_0_only_if_it_is_saved(then, code):
    command = [sys.executable, "-c", ASKED_WHILE_AT_WORK.format(then=then)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=240).returncode == code


COMPILING = """
import time
from jaxcxr.parallel.processes import joined
from jaxcxr.training.stopping import Stopped, Stopping
with joined(), Stopping() as stopping:
    try:
        print("compiling", flush=True)
        stopping.unless_asked(time.sleep, 400)
    except Stopped:
        print("stopped")
"""


@pytest.mark.parametrize("told", [(0, 1), (0,), (1,)])
def test_asked_to_stop_while_they_compile_several_processes_leave_without_one_another(told):
    address = free_address()
    pair = [start(COMPILING, number, address) for number in range(2)]
    try:
        assert [process.stdout.readline() for process in pair] == ["compiling\n"] * 2
        for number in told:
            pair[number].send_signal(signal.SIGTERM)
        for number, process in enumerate(pair):
            said, errors = process.communicate(timeout=240)
            if number in told:
                assert (process.returncode, said) == (0, "stopped\n"), errors
            else:  # in vain without the other
                assert process.returncode == 1
    finally:
        for process in pair:
            process.kill()
            process.communicate()


ASKED_AT_WORK = """
import os, signal, time
from jaxcxr.parallel.processes import joined
from jaxcxr.training.stopping import Stopping
with joined(), Stopping() as stopping:
    stopping.unless_asked(time.sleep, 0)
    stopping.started()
    if os.environ["JAXCXR_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.{number})
    step = 1
    while not stopping.agreed(step):
        step += 1
        time.sleep(0.1)
print(step)
"""


ASKED_ALONE = """
import os, signal
from jaxcxr.training.stopping import Stopping
signal.signal(signal.SIGHUP, signal.{before})
with Stopping() as stopping:
    stopping.started()
    os.kill(os.getpid(), signal.SIGHUP)
    print(stopping.agreed(1))
"""


@pytest.mark.parametrize(("before", "stops"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_terminal_that_is_gone_stops_a_run_unless_that_is_ignored_as_under_nohup(before, stops):
    command = [sys.executable, "-c", ASKED_ALONE.format(before=before)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == f"{stops}\n"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_from_the_first_step_on_several_processes_stop_at_the_same_one(number):
    address = free_address()
    pair = [start(ASKED_AT_WORK.format(number=number), process, address) for process in range(2)]
    try:
        said = [process.communicate(timeout=240) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], said
        assert said[0][0] == said[1][0]
    finally:
        for process in pair:
            process.kill()
