"""A Slurm of one node, from Debian's packages, that runs launch/slurm.sh."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.commands import ROOT, run
from tests.launch.test_local import TWO_DEVICES, losses, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="Slurm is not installed (apt-get install slurm-wlm)"),
]
SCRIPT = ROOT / "launch" / "slurm.sh"
# A node without GPUs and with room for two tasks.
SMALL = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1"]
CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
# What a requeued job waits before it starts again, in seconds.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Jobs are looked over each second, not each minute.
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which srun and sbatch find the cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = free_port(), free_port()
    file = folder / "slurm.conf"
    file.write_text(CONFIG.format(host=host, user=getpass.getuser(), ports=ports, folder=folder))
    environment = {"SLURM_CONF": str(file)}
    try:
        for daemon in ("slurmctld", "slurmd"):
            assert run([daemon], **environment).returncode == 0
        wait_until(lambda: "idle" in run(["sinfo", "-h"], **environment).stdout, 60)
        yield environment
    finally:
        for daemon in ("slurmd", "slurmctld"):
            if (file := folder / f"{daemon}.pid").is_file():
                os.kill(int(file.read_text()), signal.SIGTERM)


def wait_until(true, seconds) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.3)


def submit(environment, log: Path, *argv, bin: Path | None = None) -> str:
    done = run(["sbatch", "--parsable", f"--output={log}", *SMALL, *argv], bin, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(environment, job: str, seconds: float) -> str:
    """The state in which the job ended."""

    def state():
        shown = run(["scontrol", "show", "job", job], **environment).stdout
        return shown.split("JobState=")[1].split()[0]

    wait_until(lambda: state() not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), seconds)
    return state()


def put_jaxcxr(bin: Path, code: str) -> Path:
    bin.mkdir()
    (bin / "jaxcxr").write_text(f"#!{sys.executable}\n{code}")
    (bin / "jaxcxr").chmod(0o755)
    return bin


def test_two_tasks_train_together(slurm, tmp_path):
    bin = put_jaxcxr(tmp_path / "bin", "import sys\nfrom jaxcxr.__main__ import main\nsys.exit(main())\n")
    log = tmp_path / "log"
    train = ["train", "--config", write_config(tmp_path, steps=2), "--workdir", tmp_path / "two"]
    job = submit({**slurm, "JAX_PLATFORMS": "cpu"}, log, SCRIPT, *train, TWO_DEVICES, bin=bin)
    assert ended(slurm, job, 300) == "COMPLETED", log.read_text()[-3000:]
    assert len(losses(tmp_path / "two")) == 2  # on a mesh of two devices, and each task has one


# Trains for long, unless told to stop; is done when it is started again.
PLAYED = """
import os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
turn = os.environ.get("SLURM_RESTART_COUNT", "0")
print(f"turn {turn} task {os.environ['SLURM_PROCID']}", flush=True)
if turn != "0":
    sys.exit(int(sys.argv[1]))
end = time.monotonic() + 200
while not told and time.monotonic() < end:
    time.sleep(0.1)
time.sleep(1)
print(f"saved, told {len(told)} times", flush=True)
"""


@pytest.mark.parametrize("why", ["limit", "preempted"])
def test_a_job_that_is_told_to_stop_saves_and_goes_on_in_its_next_turn(slurm, tmp_path, why):
    bin, log = put_jaxcxr(tmp_path / "bin", PLAYED), tmp_path / "log"
    limit = ["--time=2", "--signal=B:TERM@110"] if why == "limit" else ["--time=5"]
    job = submit(slurm, log, *limit, SCRIPT, "0", bin=bin)
    wait_until(lambda: log.is_file() and log.read_text().count("turn 0") == 2, 60)
    if why == "preempted":
        assert (
            subprocess.run(["srun", "-phigh", "-n2", "true"], env={**os.environ, **slurm}, timeout=200).returncode == 0
        )
    assert ended(slurm, job, 300) == "COMPLETED", log.read_text()
    text = log.read_text()
    assert text.count("saved, told 1 times") == 2
    assert "queued again" in text
    assert {f"turn {turn} task {task}" for turn in (0, 1) for task in (0, 1)} <= set(text.splitlines())


def test_a_task_that_fails_ends_the_others_and_the_job(slurm, tmp_path):
    code = "import os, sys, time\nsys.exit(3) if os.environ['SLURM_PROCID'] == '1' else time.sleep(150)\n"
    log = tmp_path / "log"
    job = submit(slurm, log, SCRIPT, "train", bin=put_jaxcxr(tmp_path / "bin", code))
    assert ended(slurm, job, 200) == "FAILED"
    assert "task 1: Exited with exit code 3" in log.read_text()
    assert "queued again" not in log.read_text()
