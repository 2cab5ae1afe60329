"""Write prompts that ask for an effusion on a known side, or for none.

FILE gets JSON lines {"prompt", "effusion"}, none, left, right and both in equal parts, for `jaxcxr sample
--prompts FILE`, whose manifest keeps the field, and `jaxcxr evaluate`, which judges by it.
"""

import argparse
from pathlib import Path

EXAMPLE = "jaxcxr prompts --out runs/prompts.jsonl --count 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="file to write, new")
    parser.add_argument("--count", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the wording; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Writes the prompts; raises UserError on a user's mistake."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.findings import write_prompts

    if args.out.suffix != ".jsonl":
        raise UserError(f"{args.out}: holds JSON lines; give it a name that ends in .jsonl")
    fresh = write_prompts(args.out, args.count, args.seed)
    print(f"{args.out}: {args.count} prompts" + ("" if fresh else ", already there"))
