"""Plans of full-size runs: what RoentGen's step takes on each of the machines that its config has a stage for.

    python benchmarks/plan.py [STAGE ...]

Compiles for minutes each (a quarter of an hour where two cores are shared), keeps what it has found in runs/plans, and
writes all of that to benchmarks/results/plan-DATE.json: run it again for other stages.
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
STAGES = {"v5e-16": "v5e:4x4", "h100-8": "h100:8", "v5p-8": "v5p:2x2x1", "v5p-64": "v5p:2x4x4"}
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
    wanted = sys.argv[1:] or list(STAGES)
    results = {}
    for stage, name in STAGES.items():
        config, target = configs.load(ROOT / "configs" / f"roentgen.py:{stage}"), targets.parse(name)
        kept = KEPT / "plans" / f"{sweep.digest(config, target)}.json"
        if stage not in wanted and not kept.is_file():
            continue
        (point,) = sweep.sweep([config], target, KEPT)
        results[stage] = row(point.found)
        print(f"{stage}: {report.text(point.found)}\n")
    about = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "python": platform.python_version()}
    out = ROOT / "benchmarks" / "results" / f"plan-{datetime.date.today().isoformat()}.json"
    what = __doc__.split("\n")[0]
    out.write_text(json.dumps({"what": what, **about, **sweep.versions(), "results": results}, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()
