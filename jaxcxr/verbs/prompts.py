"""Write prompts that ask for known findings.

FILE gets JSON lines {"prompt", "asked", "denied"} for `jaxcxr sample --prompts FILE`, whose manifest keeps the fields,
and for `jaxcxr evaluate`, which checks the samples by them. Each finding asked for has its kind and, where they are
defined, its side, size, zone, millimetres or device. Without --ask the prompts ask for no effusion, a left, a right and
a bilateral one, in equal parts.
"""

import argparse
from pathlib import Path

from jaxcxr.options import whole

EXAMPLE = 'jaxcxr prompts --out runs/prompts.jsonl --count 200 --ask "left effusion, severe cardiomegaly, device"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="file to write, new")
    parser.add_argument("--count", type=whole(1, 1_000_000), default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of the wording; default: %(default)s")
    parser.add_argument(
        "--ask", metavar="LIST", help='comma list of findings, each "[size or zone] [side] name", or "all" of them'
    )
    parser.add_argument("--pairs", action="store_true", help="ask for two findings at a time, of two kinds")
    parser.add_argument(
        "--wording",
        choices=("held-out", "reports"),
        default="held-out",
        help="of --ask: sentences that no drawn report has, or those of the drawn reports; default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the prompts; raises UserError on a user's mistake."""
    from jaxcxr.errors import UserError
    from jaxcxr.phantoms import prompts

    if args.out.suffix != ".jsonl":
        raise UserError(f"{args.out}: holds JSON lines; give it a name that ends in .jsonl")
    if args.pairs and args.ask is None:
        raise UserError("--pairs: needs findings to pair; give --ask all, or a list")
    findings = () if args.ask is None else prompts.parse_asked(args.ask)
    rows = prompts.prompt_rows(args.count, args.seed, findings, args.pairs, args.wording == "reports")
    fresh = prompts.write_prompts(args.out, rows)
    print(f"{args.out}: {args.count} prompts" + ("" if fresh else ", already there"))
