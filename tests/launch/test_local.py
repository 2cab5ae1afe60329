"""Several processes on one machine, and what a host runs."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxcxr import config as configs
from jaxcxr.__main__ import main
from tests.launch.commands import ROOT, run
from tests.training import runs

LOCAL, WORKER = ROOT / "launch" / "local.sh", ROOT / "launch" / "worker.sh"
TWO_DEVICES = "--config.mesh.data=2"


def write_config(folder, **changes):
    """The file of a small autoencoder's config."""
    text = configs.to_json(runs.autoencoder(**changes))
    (folder / "config.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({text!r}))\n"
    )
    return folder / "config.py"


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def shell(code):
    return ["bash", "-c", code]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    train = ["train", "--config", write_config(tmp_path, steps=3), "--workdir"]
    together = [sys.executable, "-m", "jaxcxr", *train, tmp_path / "two", TWO_DEVICES]
    done = run([LOCAL, 2, 1, "cpu", *together], timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main([str(argument) for argument in [*train, tmp_path / "one"]]) == 0
    assert len(losses(tmp_path / "two")) == 3
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_each_process_is_told_its_number_and_its_devices():
    done = run([LOCAL, 2, 3, "gpu", *shell("echo $JAXCXR_PROCESS_ID/$JAXCXR_NUM_PROCESSES $CUDA_VISIBLE_DEVICES")])
    assert sorted(done.stdout.splitlines()) == ["0/2 0,1,2", "1/2 3,4,5"]
    assert done.returncode == 0
    done = run([LOCAL, 1, 3, "cpu", *shell("echo $XLA_FLAGS; echo $JAXCXR_COORDINATOR $JAX_COORDINATOR_BIND_ADDRESS")])
    flags, addresses = done.stdout.splitlines()
    assert flags.endswith("--xla_force_host_platform_device_count=3")
    coordinator, bound = addresses.split()
    assert coordinator == bound
    assert coordinator.startswith("127.0.0.1:")


def test_when_one_fails_the_others_are_ended_and_its_code_is_passed_on():
    done = run([LOCAL, 3, 1, "cpu", *shell("[ $JAXCXR_PROCESS_ID = 1 ] && exit 7; sleep 400")])
    assert done.returncode == 7
    assert "ended with exit code 7" in done.stderr


def test_one_that_does_not_hear_is_killed():
    deaf = "trap '' TERM; [ $JAXCXR_PROCESS_ID = 1 ] && exit 7; while :; do sleep 1; done"
    done = run([LOCAL, 2, 1, "cpu", *shell(deaf)], GRACE="0.5")
    assert done.returncode == 7


def stopped(argv, started, told=signal.SIGTERM):
    """Output and exit code of what is told to stop once it printed `started` in all its processes."""
    # It hears also where the tests run in the background of a shell or under nohup, which ignore some signals.
    hear = f"import os, signal, sys; signal.signal({int(told)}, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", hear, *(str(a) for a in argv)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(started)]
    process.send_signal(told)
    rest, _ = process.communicate(timeout=240)
    return "".join(lines) + rest, process.returncode


SAVING = """
import signal, sys, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
print("started", flush=True)
while not got:
    time.sleep(0.05)
time.sleep(0.5)
print(f"saved, told {len(got)} times", flush=True)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("script", "processes"), [([LOCAL, 2, 1, "cpu"], 2), ([WORKER, "cpu"], 1)])
def test_told_to_stop_all_save_and_the_end_is_not_taken_for_success(script, processes, told):
    output, code = stopped([*script, sys.executable, "-c", SAVING, 0], processes, told)
    assert output.count("saved, told 1 times") == processes
    assert code == 143


def test_a_command_that_fails_keeps_its_code_when_told_to_stop():
    assert stopped([WORKER, "cpu", sys.executable, "-c", SAVING, 5], 1)[1] == 5


@pytest.mark.parametrize("code", [0, 2, 1])
def test_a_worker_passes_the_code_on(code):
    assert run([WORKER, "gpu", *shell(f"exit {code}")]).returncode == code


def test_a_worker_has_the_flags_of_its_hardware():
    assert "fuse_all_reduce=true" in run([WORKER, "tpu", *shell("echo $LIBTPU_INIT_ARGS")]).stdout
    assert run([WORKER, "abacus", "true"]).returncode == 2
