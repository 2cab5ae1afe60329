"""Plans of full-size runs: RoentGen's step on each of the machines that its config has a stage for, and the scaling
configs at their smallest.

    python benchmarks/plan.py [CONFIG ...]

Compiles for minutes each (a quarter of an hour where two cores are shared), keeps what it has found in runs/plans, and
writes all of that to benchmarks/results/plan-DATE.json: run it again for other configs.
"""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

from jaxcxr import platforms

platforms.only_those_here()

from jaxcxr import config as configs  # noqa: E402
from jaxcxr.plan import report, sweep, targets  # noqa: E402
from jaxcxr.plan.roofline import estimate  # noqa: E402

ROOT = Path(__file__).parents[1]
TARGETS = {
    "roentgen.py:v5e-16": "v5e:4x4",
    "roentgen.py:v5p-8": "v5p:2x2x1",
    "roentgen.py:v5p-64": "v5p:2x4x4",
    "roentgen.py:h100-8": "h100:8",
    "scaling/sd2.py": "v5p:2x2x2",
    "scaling/weak.py": "v5e:2x4",
    "scaling/strong.py": "v5p:2x2x2",
}
KEPT = ROOT / "runs" / "plans"


def row(found):
    numbers = {key: value for key, value in found.items() if key != "sharding"}
    if not found["over"]:
        guess = estimate(found)
        numbers["roofline"] = {
            "compute_s": guess.compute,
            "state_s": guess.state,
            "communication_s": guess.communication,
            "expected_s": guess.seconds,
            "band_s": guess.band,
            "img_per_s": guess.rate,
            "mfu": guess.mfu,
        }
    return {"verdict": report.fits(found)} | numbers


def main():
    wanted = sys.argv[1:] or list(TARGETS)
    results = {}
    for name, hardware in TARGETS.items():
        config, target = configs.load(ROOT / "configs" / name), targets.parse(hardware)
        kept = KEPT / "plans" / f"{sweep.digest(config, target)}.json"
        if name not in wanted and not kept.is_file():
            continue
        (point,) = sweep.sweep([config], target, KEPT)
        results[name] = row(point.found)
        print(f"{name}: {report.text(point.found)}\n")
    about = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "python": platform.python_version()}
    out = ROOT / "benchmarks" / "results" / f"plan-{datetime.date.today().isoformat()}.json"
    what = __doc__.split("\n")[0]
    out.write_text(json.dumps({"what": what, **about, **sweep.versions(), "results": results}, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()
