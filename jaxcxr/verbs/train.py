"""Train or resume a model.

The workdir holds the run: config.json, model/ (a diffusers folder without weights), checkpoints/,
metrics.jsonl, tensorboard/ and samples/. Run the same command again to go on where it stopped; SIGTERM and
Ctrl-C save first.
"""

import argparse
from pathlib import Path

EXAMPLE = "jaxcxr train --config configs/phantom.py --workdir runs/phantom/diffusion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="config file, FILE.py or FILE.py:STAGE")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run, new or to resume")
    parser.add_argument("--stop-at", type=int, help="save and stop at this step; the schedule is that of the whole run")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one process of several, as on a TPU pod slice: finds the others by jax.distributed.initialize()",
    )


def run(args: argparse.Namespace) -> None:
    """Trains; raises UserError on a user's mistake."""
    import jax

    from jaxcxr import config as configs
    from jaxcxr.training.train import train

    if args.distributed:
        jax.distributed.initialize()
    train(configs.load(args.config, args.overrides), args.workdir, args.stop_at)
