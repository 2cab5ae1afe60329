"""Fake commands on PATH that record how they are called."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In Bash, as Python takes its time to start: a record an argument, and a separator a call.
RECORD = """#!/usr/bin/env bash
here=$(dirname "$0")
{ printf '%s\\x1f' "${0##*/}" "$@"; if [ "${!#}" = - ]; then cat; fi; printf '\\x1e'; } >>"$here/calls"
"""


def fake(folder: Path, name: str, code: str = "") -> None:
    """Puts a Bash script `name` there that records its arguments, and what it reads for a last `-`, and runs `code`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(RECORD + code)
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """A list a call: its name, arguments and, where the last of them is `-`, what it read from stdin."""
    file = folder / "calls"
    text = file.read_text() if file.is_file() else ""
    return [[part for part in call.split("\x1f") if part] for call in text.split("\x1e")[:-1]]


def run(argv: list, folder: Path | None = None, timeout: int = 240, **environment) -> subprocess.CompletedProcess:
    """Runs a script of `launch/` from the repository's folder, `folder` ahead on PATH."""
    path = os.pathsep.join([*([str(folder)] if folder else []), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    text = [str(argument) for argument in argv]
    return subprocess.run(text, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
