"""From radiographs on disk to batches: the speed of preparing and loading, against Pillow and a PyTorch DataLoader.

    python benchmarks/data.py [prepare stream cache scale wait] [--scratch DIR]

Needs PyTorch, 2 GB of disk and ten minutes on two idle cores. What is compared takes turns, and the best turn of each
counts. `load_average` tells how idle the machine was before a section. Writes benchmarks/results/data-DATE.json;
sections that are not run keep what that file says of them.
"""

import argparse
import contextlib
import datetime
import importlib
import json
import os
import platform
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECTIONS = ("prepare", "stream", "cache", "scale", "wait")


def machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.exists() else []
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--scratch", type=Path, help="folder whose content later runs use again; default: a new one")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    out = ROOT / "benchmarks" / "results" / f"data-{datetime.date.today()}.json"
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcxr-benchmark-")))
        scratch.mkdir(parents=True, exist_ok=True)
        for name in args.sections or SECTIONS:
            load = os.getloadavg()[0]
            found = importlib.import_module(f"feeding.{name}").measure(scratch) | {"load_average": round(load, 2)}
            print(name, json.dumps(found, indent=2), flush=True)
            content = json.loads(out.read_text()) if out.exists() else {"results": {}}
            packages = ("jax", "array_record", "pillow", "torch")
            content = {
                "what": __doc__.split("\n")[0],
                "machine": machine() | {"python": platform.python_version()},
                "versions": {package: version(package) for package in packages},
                "results": content["results"] | {name: found},
            }
            out.write_text(json.dumps(content, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()
