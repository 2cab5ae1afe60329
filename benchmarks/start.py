"""The time to the first step of a run, when nothing is compiled yet and when all of it is.

    python benchmarks/start.py [--scratch DIR]

Starts the autoencoder of `configs/phantom.py` as a user does, twice with one compile cache, which is new the first
time. Writes benchmarks/results/start-DATE.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import record

from jaxcxr import config as configs
from jaxcxr.data.prepare import prepare
from jaxcxr.phantoms.tree import write_tree

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "phantom.py:autoencoder"


def seconds_to_first_step(folder: Path, name: str) -> float:
    overrides = ("steps=1", "log_every=1", "eval_every=0", "sample_every=0", f"data.path={folder / 'data'}")
    argv = [sys.executable, "-m", "jaxcxr", "train", "--config", str(CONFIG), "--workdir", str(folder / name)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    command = [*argv, *(f"--config.{value}" for value in overrides)]
    subprocess.run(command, env={**os.environ, **cache}, check=True, capture_output=True)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return next(line["seconds_to_first_step"] for line in lines if "seconds_to_first_step" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder to write to; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        write_tree(folder / "tree", 60, 64)
        prepare(configs.load(CONFIG).data, folder / "tree", folder / "data")
        found = {name: round(seconds_to_first_step(folder, name), 1) for name in ("cold", "warm")}
    record.write("start", ("jax",), {"seconds_to_first_step": found})


if __name__ == "__main__":
    main()
