import subprocess
import sys

import pytest

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
