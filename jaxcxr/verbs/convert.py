"""Convert checkpoints between Orbax and diffusers.

The diffusers folder loads with StableDiffusionPipeline.from_pretrained; the Orbax folder is a base checkpoint
for training. A destination appears whole or not at all.
"""

import argparse
from pathlib import Path

EXAMPLE = "jaxcxr convert runs/phantom/diffusion runs/phantom/diffusers --to diffusers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("source", type=Path, metavar="SRC", help="workdir, diffusers folder or Orbax folder")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write, new")
    parser.add_argument("--to", required=True, choices=["diffusers", "orbax"])
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "float16", "bfloat16"],
        help="of a diffusers folder; default: %(default)s",
    )
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a workdir; default: %(default)s")
    parser.add_argument("--verify", action="store_true", help="read the result back and compare every tensor")


def run(args: argparse.Namespace) -> None:
    """Converts; raises UserError on a user's mistake."""
    import jax.numpy as jnp
    import numpy as np

    from jaxcxr import interop
    from jaxcxr.errors import UserError

    if args.to == "orbax" and args.dtype != "float32":
        raise UserError(f"--dtype {args.dtype}: Orbax checkpoints hold float32, to be trained; leave --dtype away")
    pipeline = interop.load(args.source, ema=args.weights == "ema")
    if args.to == "orbax":
        interop.orbax.save(pipeline, args.destination)
    else:
        interop.save(pipeline, args.destination, dtype=jnp.dtype(args.dtype))
    print(f"{args.destination}: {', '.join(pipeline.networks)} as {args.to}, {args.dtype}")
    if args.verify:
        written = interop.load(args.destination).parameters()
        for network in pipeline.networks:
            worst = max(
                float(np.max(np.abs(np.asarray(value) - np.asarray(written[name]))))
                for name, value in pipeline.parameters().items()
                if name.startswith(f"{network}.")
            )
            print(f"{network}: largest difference {worst:.3g}")
