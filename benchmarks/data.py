"""From radiographs on disk to batches: the speed of preparing and loading, against Pillow and a PyTorch DataLoader.

    python benchmarks/data.py [prepare stream cache scale wait] [--scratch DIR]

Needs PyTorch, 2 GB of disk and ten minutes on two idle cores. What is compared takes turns, and the best turn of each
counts. `load_average` tells how idle the machine was before a section. Writes benchmarks/results/data-DATE.json;
sections that are not run keep what that file says of them.
"""

import argparse
import contextlib
import importlib
import os
import tempfile
from pathlib import Path

import record

ROOT = Path(__file__).parents[1]
SECTIONS = ("prepare", "stream", "cache", "scale", "wait")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--scratch", type=Path, help="folder whose content later runs use again; default: a new one")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcxr-benchmark-")))
        scratch.mkdir(parents=True, exist_ok=True)
        for name in args.sections or SECTIONS:
            load = os.getloadavg()[0]
            found = importlib.import_module(f"feeding.{name}").measure(scratch) | {"load_average": round(load, 2)}
            record.write("data", ("jax", "array_record", "pillow", "torch"), {name: found})


if __name__ == "__main__":
    main()
