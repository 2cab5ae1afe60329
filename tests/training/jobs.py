"""Training, or another verb, in processes of their own, which can be killed."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr import interop
from tests.training import runs


def write_config(config: ConfigDict, file: Path) -> Path:
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({configs.to_json(config)!r}))\n"
    )
    return file


def start(config: Path, workdir: Path, *options: str, processes: int = 1, devices: int = 1):
    """The processes of a training, each with its output in `<workdir>.<number>.log`."""
    argv = ["train", "--config", str(config), "--workdir", str(workdir), *options]
    return begin(argv, workdir, processes=processes, devices=devices)


def begin(argv: list[str], out: Path, *, processes: int = 1, devices: int = 1):
    """The processes of `jaxcxr ARGV`, each with its output in `<out>.<number>.log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jaxcxr", *argv]
    started = []
    for number in range(processes):
        own = {}
        if processes > 1:
            own |= {"JAXCXR_COORDINATOR": f"127.0.0.1:{port}", "JAXCXR_NUM_PROCESSES": str(processes)}
            own |= {"JAXCXR_PROCESS_ID": str(number), "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
        with log(out, number).open("w") as file:
            started.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment(devices) | own))
    return started


def environment(devices: int = 1) -> dict[str, str]:
    """That of a process with so many CPU devices."""
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=1", f"device_count={devices}")
    path = os.pathsep.join(filter(None, [str(runs.ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def finish(started, workdir: Path, codes=0, timeout: float = 240) -> str:
    """Waits until all have ended with these codes; returns what the first of them said."""
    try:
        found = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [log(workdir, number).read_text() for number in range(len(started))]
    assert found == [codes] * len(started), "\n".join(text[-3000:] for text in said)
    return said[0]


def log(workdir: Path, number: int = 0) -> Path:
    return workdir.with_name(f"{workdir.name}.{number}.log")


def until(true, started, timeout: float = 240) -> None:
    """Waits until `true()`, while all of the processes run; ends them if it does not come to be."""
    end = time.monotonic() + timeout
    while not true():
        late, ended = time.monotonic() > end, any(process.poll() is not None for process in started)
        if late or ended:
            for process in started:
                process.kill()
            raise AssertionError("took too long" if late else "ended too early")
        time.sleep(0.02)


def steps_done(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def metrics(workdir: Path, *names: str):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], *(row[name] for name in names)) for row in rows if names[0] in row]


def weights(workdir: Path, ema: bool = True):
    return {name: np.asarray(value) for name, value in interop.load(workdir, ema=ema).parameters().items()}


def assert_same(first: Path, second: Path):
    for ema in (False, True):
        ours, theirs = weights(first, ema), weights(second, ema)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metrics(first, "loss", "grad_norm") == metrics(second, "loss", "grad_norm")
    assert metrics(first, "validation_loss") == metrics(second, "validation_loss")
