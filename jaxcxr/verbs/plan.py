"""Compile a run's train step for hardware that is not here, and say whether it fits and how fast it may be.

Neither weights nor data are needed: of --config.model.base the config files are read where it is here, and a published
folder such as stable-diffusion-v1-4 is known by its name. TPUs want the extra plan-tpu, GPUs plan-cuda. A full-size
step compiles for minutes. --sweep and --scaling keep what they have found in --out, so that they resume when run again.

A --config file is Python and is executed. Read a config file from someone else before you use it.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "jaxcxr plan --config configs/roentgen.py:v5e-16 --target v5e:4x4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="config file, FILE.py or FILE.py:STAGE")
    parser.add_argument(
        "--target",
        required=True,
        help="CHIP:SHAPE, as v4:2x2x2, v5e:4x4, v5e:16x16*4 (slices), v5p:2x2x2, v6e:4x4, h100:8, h200:2x8",
    )
    parser.add_argument(
        "--show", choices=("sharding",), help="only the table of where parameters lie; compiles nothing"
    )
    parser.add_argument("--sweep", action="store_true", help="try batch sizes, strategies, remat and accumulation")
    parser.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="with --sweep: what to try in place of that, once a key: --try batch_size=128,256 --try remat=none,blocks",
    )
    parser.add_argument("--scaling", action="store_true", help="8 to 1,024 chips of the target's kind, strong and weak")
    parser.add_argument(
        "--coarse", action="store_true", help="with --scaling: compile three sizes, interpolate the rest"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for plan.json, or for the page and its numbers")


def run(args: argparse.Namespace) -> None:
    """Plans; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.errors import UserError
    from jaxcxr.plan import targets
    from jaxcxr.training import ranges
    from jaxcxr.training.feed import with_size

    target = targets.parse(args.target)
    if args.sweep and args.scaling:
        raise UserError("--sweep and --scaling: one at a time")
    if (args.sweep or args.scaling) and not args.out:
        raise UserError("--out: name a folder for what the sweep finds")
    if args.show and (args.sweep or args.scaling):
        raise UserError("--show: goes with a plan alone, not with --sweep or --scaling")
    if args.coarse and not args.scaling:
        raise UserError("--coarse: goes with --scaling")
    if args.tried and not args.sweep:
        raise UserError("--try: goes with --sweep")
    if (args.sweep or args.scaling) and target.platform == "cpu":
        raise UserError(f"--target {target.name}: a plan says nothing of a CPU's speed; name TPUs or GPUs")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out}: is a file; name a folder")
    targets.check_compiler(target)
    config = configs.load(args.config, args.overrides)
    ranges.check(config)
    config = with_size(config)
    if args.sweep:
        _sweep(args, config, target)
    elif args.scaling:
        _scaling(args, config, target)
    else:
        _plan(args, config, target)


def _plan(args: argparse.Namespace, config: Any, target: Any) -> None:
    """One plan, printed."""
    import json

    from jaxcxr.errors import UserError
    from jaxcxr.files import replace_file
    from jaxcxr.plan import apart, report

    found = apart.measure(config, target, sharding_only=args.show == "sharding")
    print(report.sharding(found) if args.show else report.text(found))
    if args.out and not args.show:
        try:
            replace_file(args.out / "plan.json", (json.dumps(found, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{args.out}: cannot be written ({error.strerror}); name another folder") from error
        print(f"numbers: {args.out / 'plan.json'}")


def _sweep(args: argparse.Namespace, config: Any, target: Any) -> None:
    """Many plans, the best of them, and a page."""
    from jaxcxr import config as configs
    from jaxcxr.plan import page, report, sweep

    axes = sweep.axes_of(args.tried) or sweep.default_axes(config, target)
    points = sweep.sweep(sweep.grid(config, target, axes), target, args.out)
    best = sweep.best(points)
    print(report.table(page.sweep_rows(points, best)))
    print(f"\nbest that fits: {page.label(best)}" if best else "\nnone fits; try smaller batches or more chips")
    rows = [
        {
            "config": page.label(point),
            "overrides": configs.to_json(point.config),
            "found": point.found,
            "why": point.why,
        }
        for point in points
    ]
    _write(args.out, "sweep", rows, page.sweep_page(points, best, target, configs.to_json(config)))


def _scaling(args: argparse.Namespace, config: Any, target: Any) -> None:
    """Plans from 8 to 1,024 chips, and a page."""
    from jaxcxr import config as configs
    from jaxcxr.plan import apart, page, report, scaling

    # A mistake in the config is found here, once, before all sizes are planned for minutes.
    apart.measure(scaling.at(config, target, target, config.batch_size), target, sharding_only=True)
    scaled = scaling.scaling(config, target, args.out, coarse=args.coarse)
    for kind, sizes in scaled.items():
        print(f"{kind} scaling\n{report.table(page.scaling_rows(sizes))}\n")
    rows = {
        kind: [
            {"target": size.target.name, "found": size.found, "interpolated": size.interpolated, "why": size.why}
            for size in sizes
        ]
        for kind, sizes in scaled.items()
    }
    _write(args.out, "scaling", rows, page.scaling_page(scaled, target, configs.to_json(config)))


def _write(folder: Path, name: str, numbers: Any, text: str) -> None:
    import json

    from jaxcxr.errors import UserError
    from jaxcxr.files import replace_file

    try:
        replace_file(folder / f"{name}.json", (json.dumps(numbers, indent=2) + "\n").encode())
        replace_file(folder / f"{name}.html", text.encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    print(f"page: {folder / name}.html")
