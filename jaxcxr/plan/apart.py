"""Plans in a process of their own.

Because JAX chooses its platforms when it starts, a sweep may need libtpu and XLA's CUDA compiler both, a compiler that
crashes takes its process with it, and one full-size compile leaves gigabytes behind.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from tqdm.auto import tqdm

from jaxcxr.errors import UserError
from jaxcxr.plan import targets
from jaxcxr.plan.targets import Target

STAGES = ("networks", "trace", "lower", "compile")


def measure(config: ConfigDict, target: Target, *, sharding_only: bool = False, quiet: bool = False) -> dict[str, Any]:
    """What the train step of `config` takes on `target`: as `jaxcxr.plan.compile.measure`, with a bar of its stages.

    Raises:
      UserError: a mistake in the config, found before anything is compiled; or the compiler failed.
    """
    targets.check_compiler(target)
    request = {"config": config.to_dict(), "target": target.name, "sharding_only": sharding_only}
    stages = STAGES[:1] if sharding_only else STAGES
    with tempfile.TemporaryFile("w+") as log, _process(log, targets.environment(target)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request, default=list))
        process.stdin.close()
        bar = tqdm(total=len(stages), desc=f"plan {target.name}", unit="stage", disable=quiet or None, leave=False)
        with bar, _ticking(bar):
            for line in process.stdout:
                answer = json.loads(line)
                if "stage" in answer:
                    bar.n = stages.index(answer["stage"])
                    bar.set_postfix_str(answer["stage"])
                elif "error" in answer:
                    raise UserError(answer["error"])
                else:
                    return answer["result"]
        process.wait()
        log.seek(0)
        told = [line.strip() for line in log.read()[-20_000:].splitlines() if line.strip()]
        path = _keep(told, target)
        last = told[-1][:200] if told else "it said nothing"
        raise UserError(
            f"--target {target.name}: the compiler ended with code {process.returncode} ({last}); all it said: {path}"
        )


def _keep(told: list[str], target: Target) -> str:
    """Writes what a compiler said to a file that stays."""
    name = target.name.replace(":", "-").replace("*", "-")
    with tempfile.NamedTemporaryFile("w", prefix=f"jaxcxr-plan-{name}-", suffix=".log", delete=False) as file:
        file.write("\n".join(told) + "\n")
    return file.name


@contextlib.contextmanager
def _process(log: Any, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """The other process, ended when the block ends, however it does."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    command = [sys.executable, "-m", "jaxcxr.plan.compile"]
    process = subprocess.Popen(command, text=True, env={**os.environ, **environment}, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _ticking(bar: tqdm) -> Iterator[None]:
    """Redraws the bar every second, so that its clock runs while a compiler is silent for minutes."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
