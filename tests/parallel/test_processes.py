import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxcxr.errors import UserError
from jaxcxr.parallel import processes
from tests.training.runs import ROOT

TOLD = {"JAXCXR_COORDINATOR": "10.0.0.1:1234", "JAXCXR_NUM_PROCESSES": "4", "JAXCXR_PROCESS_ID": "3"}
SRUN = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize("number", [0, 1])
def test_what_the_first_process_lists_is_what_all_get(monkeypatch, number):
    sent = [np.array(False), np.int32(len(b"[6, 4]")), np.frombuffer(b"[6, 4]", np.uint8)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: number)

    def broadcast(own):
        value = sent.pop(0)
        assert np.shape(own) == np.shape(value)
        return own if number == 0 else value

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    assert processes.from_first(lambda: [6, 4] if number == 0 else pytest.fail("is not asked")) == [6, 4]
    assert sent == []


@pytest.mark.parametrize(("number", "own"), [(0, [0, 4]), (1, [2, 6])])
def test_what_is_left_is_shared_out_anew(monkeypatch, number, own):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: number)
    monkeypatch.setattr(processes, "from_first", lambda find: find())
    assert processes.share_out(lambda: [0, 2, 4, 6]) == own


@pytest.fixture
def asked(monkeypatch):
    """What JAX was asked for, in an environment that tells of nothing."""
    for name in [*TOLD, *(name for name in os.environ if name.startswith(("SLURM", "TPU", "KUBERNETES", "CUDA_V")))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: calls.append(how))
    return calls


def tell(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_process_that_is_told_of_no_others_is_alone(asked):
    assert processes.join() is False
    assert asked == []


def test_our_variables_tell_of_others(asked, monkeypatch):
    tell(monkeypatch, TOLD | SRUN)  # and go before what the cluster says
    assert processes.join() is True
    (how,) = asked
    assert how["coordinator_address"] == "10.0.0.1:1234"
    assert (how["num_processes"], how["process_id"]) == (4, 3)
    assert how["cluster_detection_method"] == "deactivate"
    assert how["heartbeat_timeout_seconds"] < 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAXCXR_PROCESS_ID": ""}, "JAXCXR_PROCESS_ID: is not set"),
        ({"JAXCXR_COORDINATOR": ""}, "JAXCXR_COORDINATOR: is not set"),
        ({"JAXCXR_COORDINATOR": "10.0.0.1"}, "wants host:port"),
        ({"JAXCXR_PROCESS_ID": "4"}, "JAXCXR_PROCESS_ID=4: wants 0 to 3"),
        ({"JAXCXR_NUM_PROCESSES": "four"}, "want whole numbers"),
    ],
)
def test_variables_that_make_no_sense_are_told(asked, monkeypatch, changes, message):
    tell(monkeypatch, TOLD | changes)
    with pytest.raises(UserError, match=message):
        processes.join()
    assert asked == []


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        (SRUN, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, False),  # a batch script
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "kubernetes"),
        (TOLD | {"JAXCXR_NUM_PROCESSES": "1", "JAXCXR_PROCESS_ID": "0"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("installed", ["kubernetes", "libtpu"])
def test_what_jax_can_detect_is_left_to_it(asked, monkeypatch, environment, several, installed):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == installed or None)
    tell(monkeypatch, environment)
    expected = several is True or several == installed
    assert processes.join() is expected
    assert asked == [] if not expected else "coordinator_address" not in asked[0]


def test_on_a_tpu_vm_jax_is_asked(asked, monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")  # JAX sets it where it sees no TPU
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert processes.join() is True


@pytest.mark.parametrize(
    ("gpus", "changes", "share"),
    [
        ("0,1,2,3,4,5,6,7", {}, [1]),
        ("0,1,2,3,4,5,6,7", {"SLURM_STEP_NUM_TASKS": "4"}, [4, 5, 6, 7]),
        ("0,1,2,3,4,5,6,7", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, list(range(8))),  # a task a node
        ("5", {}, [0]),  # bound by Slurm to one
        ("4,5", {"SLURM_GPUS_PER_TASK": "2", "SLURM_STEP_NUM_TASKS": "4"}, [0, 1]),
        ("", {}, None),
    ],
)
def test_a_task_takes_its_share_of_the_gpus_that_it_sees(asked, monkeypatch, gpus, changes, share):
    tell(monkeypatch, SRUN | {"CUDA_VISIBLE_DEVICES": gpus} | changes)
    assert processes.join() is True
    assert asked[0]["local_device_ids"] == share


def test_what_jax_cannot_detect_is_one_line(asked, monkeypatch):
    def fail(**how):
        raise RuntimeError("no metadata server\nat all")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    tell(monkeypatch, SRUN)
    with pytest.raises(UserError, match="others cannot be found: no metadata server$"):
        processes.join()


def start(code: str, number: int, address: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAXCXR_COORDINATOR": address}
    environment |= {"JAXCXR_NUM_PROCESSES": "2", "JAXCXR_PROCESS_ID": str(number)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_others_do_not_come_says_so_and_ends(number):
    address = free_address()
    process = start("from jaxcxr.parallel.processes import join; join(timeout=2)", number, address)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("jaxcxr: ")]
    assert f"did not find one another in 2 s at {address}, process {number} of 2" in line
    assert "stack trace" not in errors


FAILING = """
import sys, time
from jaxcxr import __main__ as program
from jaxcxr.errors import UserError
from jaxcxr.parallel.processes import joined
import jax
with joined():
    print("joined", flush=True)
    if jax.process_index() == 0:
        time.sleep(400)
    raise UserError("no such folder")
"""


def test_a_process_that_fails_does_not_wait_for_the_others():
    """They are waiting for it."""
    address = free_address()
    pair = [start(FAILING, number, address) for number in range(2)]
    try:
        assert pair[1].stdout.readline() == "joined\n"
        _, errors = pair[1].communicate(timeout=240)
        assert pair[1].returncode == 2
        assert "no such folder" in errors
    finally:
        for process in pair:
            process.kill()
            process.communicate()


WAITING = """
import time
from jaxcxr.parallel.processes import joined
with joined():
    print("joined", flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_when_one_is_killed_the_other_ends_within_a_minute(number):
    address = free_address()
    pair = [start(WAITING, each, address) for each in range(2)]
    try:
        assert [process.stdout.readline() for process in pair] == ["joined\n"] * 2
        pair[number].kill()
        _, errors = pair[1 - number].communicate(timeout=60)
        assert pair[1 - number].returncode != 0
        assert "another task died" in errors
    finally:
        for process in pair:
            process.kill()
            process.communicate()
