"""Compile a run's train step for hardware that is not here, and say whether it fits and how fast it may be.

Neither weights nor data are needed: of --config.model.base the config files are read where it is here, and a published
folder such as stable-diffusion-v1-4 is known by its name. TPUs want the extra plan-tpu, GPUs plan-cuda. A full-size
step compiles for minutes. --sweep and --scaling keep what they have found in --out, so that run again they go on.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "jaxcxr plan --config configs/roentgen.py:v5e-16 --target v5e:4x4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="config file, FILE.py or FILE.py:STAGE")
    parser.add_argument(
        "--target", required=True, help="v4:2x2x2, v5e:4x4, v5e:16x16*4 (slices), v5p:2x2x2, v6e:4x4, h100:8, h200:2x8"
    )
    parser.add_argument(
        "--show", choices=("sharding",), help="only the table of where parameters lie; compiles nothing"
    )
    parser.add_argument("--sweep", action="store_true", help="try batch sizes, strategies, remat and accumulation")
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

    target = targets.parse(args.target)
    if args.sweep and args.scaling:
        raise UserError("--sweep and --scaling: one at a time")
    if (args.sweep or args.scaling) and not args.out:
        raise UserError("--out: name a folder for what the sweep finds")
    if args.coarse and not args.scaling:
        raise UserError("--coarse: goes with --scaling")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out}: is a file; name a folder")
    targets.check_compiler(target)
    config = configs.load(args.config, args.overrides)
    _plan(args, config, target)


def _plan(args: argparse.Namespace, config: Any, target: Any) -> None:
    """One plan, printed."""
    import json

    from jaxcxr.files import replace_file
    from jaxcxr.plan import apart, report

    found = apart.measure(config, target, sharding_only=args.show == "sharding")
    print(report.sharding(found) if args.show else report.text(found))
    if args.out and not args.show:
        replace_file(args.out / "plan.json", (json.dumps(found, indent=2) + "\n").encode())
        print(f"numbers: {args.out / 'plan.json'}")
