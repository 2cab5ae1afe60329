"""Train or resume a model.

The workdir holds the run: config.json, model/ (a diffusers folder without weights), checkpoints/,
metrics.jsonl, tensorboard/ and samples/. SIGTERM, SIGHUP and Ctrl-C save first. To resume, give --workdir alone:
config and overrides are in the workdir; a --config or overrides that are given again have to agree with them, except
for steps, mesh and display settings. Started several times, by srun, on a TPU slice or by launch/local.sh, the
processes find one another and train together.

A --config file is Python and is executed. Read a config file from someone else before you use it.
"""

import argparse

from jaxcxr import buckets
from jaxcxr.options import whole

EXAMPLE = "jaxcxr train --config configs/phantom.py --workdir runs/phantom/diffusion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--config", help="config file, FILE.py or FILE.py:STAGE, which is executed; not needed to resume"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=buckets.output,
        help="folder of the run, new or to resume; may be gs://…",
    )
    parser.add_argument(
        "--stop-at",
        type=whole(1, 2**31 - 1),
        help="save and stop at this step; the schedule is that of the whole run",
    )


def run(args: argparse.Namespace) -> None:
    """Trains; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.data.stage import KEYS
    from jaxcxr.parallel import processes
    from jaxcxr.training.checkpoint import resumed
    from jaxcxr.training.train import train
    from jaxcxr.workdir import Command

    if args.config is None:
        config, command = resumed(args.workdir, args.overrides), None
    else:
        config = configs.load(args.config, args.overrides, buckets=KEYS)
        command = Command(args.config, tuple(args.overrides))
    with processes.joined():
        train(config, args.workdir, args.stop_at, command)
