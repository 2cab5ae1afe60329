"""Plans of full-size runs: RoentGen's step on each of the machines that its config has a stage for, and the scaling
configs at their smallest.

    python benchmarks/plan.py [CONFIG ...]

Compiles for minutes each (a quarter of an hour where two cores are shared), keeps what it has found in runs/plans, and
writes benchmarks/results/plan-DATE.json.
"""

import sys
from pathlib import Path

import record

from jaxcxr import platforms

platforms.only_those_here()

from jaxcxr import config as configs  # noqa: E402
from jaxcxr.plan import report, sweep, targets  # noqa: E402
from jaxcxr.plan.roofline import estimate  # noqa: E402

ROOT = Path(__file__).parents[1]
TARGETS = {
    "roentgen.py": "h100:1",
    "roentgen.py:v5e-16": "v5e:4x4",
    "roentgen.py:v5p-8": "v5p:2x2x1",
    "roentgen.py:v5p-64": "v5p:2x4x4",
    "roentgen.py:h100-8": "h100:8",
    "scaling/sd2.py": "v5p:2x2x2",
    "scaling/weak.py": "v5e:2x4",
    "scaling/strong.py": "v5p:2x2x2",
}


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
    for name in sys.argv[1:] or TARGETS:
        config, target = configs.load(ROOT / "configs" / name), targets.parse(TARGETS[name])
        (point,) = sweep.sweep([config], target, ROOT / "runs" / "plans")
        print(f"{name}: {report.text(point.found)}\n")
        record.write("plan", tuple(sweep.versions()), {name: row(point.found)})


if __name__ == "__main__":
    main()
