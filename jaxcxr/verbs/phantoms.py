"""Write synthetic chest radiographs with reports, laid out like MIMIC-CXR-JPG."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from jaxcxr.options import whole
from jaxcxr.phantoms.generator import KINDS, MAX_SIZE, MIN_SIZE
from jaxcxr.phantoms.studies import PREVALENCE
from jaxcxr.phantoms.tree import TRUTH, write_tree

EXAMPLE = "jaxcxr phantoms --out runs/phantoms --patients 2000 --size 64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's options."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not hold anything else")
    parser.add_argument(
        "--patients",
        type=whole(1, 1_000_000),
        default=2000,
        help="number of patients, one to three studies each",
    )
    parser.add_argument("--size", type=whole(MIN_SIZE, MAX_SIZE), default=64, help="image side in pixels, 64 to 512")
    parser.add_argument(
        "--film", type=_film, metavar="WxH", help="enlarge to this many pixels, with noise: 2544x3056 weighs as MIMIC's"
    )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="equal seeds give equal bytes")
    parser.add_argument(
        "--findings", default=",".join(KINDS), metavar="LIST", help=f"comma list out of {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--unmentioned", default="", metavar="LIST", help="of those not in --findings: no report denies them either"
    )
    parser.add_argument(
        "--prevalence",
        type=_prevalence,
        default=PREVALENCE,
        metavar="LIST",
        help="share of studies with these findings: 'left effusion=0.1,device=0.4'; the others keep theirs",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write each finding's mask under masks/, and one picture of lungs and findings under conditions/",
    )


def _film(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.100} may be two numbers of pixels, as 2544x3056") from error
    return width, height


def _prevalence(text: str) -> Mapping[str, float]:
    given = dict(PREVALENCE)
    for entry in text.split(","):
        name, _, share = map(str.strip, entry.partition("="))
        if name not in PREVALENCE:
            raise argparse.ArgumentTypeError(f"{name!r:.100} is no finding; choose from {', '.join(PREVALENCE)}")
        try:
            given[name] = float(share)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{entry!r:.100} is not a share; write {name}=0.25") from error
    return given


def run(args: argparse.Namespace) -> None:
    """Write the tree and say what is where; see `write_tree` for the errors."""
    kinds, unmentioned = (
        [kind.strip() for kind in text.split(",") if kind.strip()] for text in (args.findings, args.unmentioned)
    )
    tree = write_tree(
        *(args.out, args.patients, args.size, args.seed, kinds, args.masks),
        prevalence=args.prevalence,
        film=args.film,
        unmentioned=unmentioned,
        progress=True,
    )
    if not tree.fresh:
        print(f"{tree.out} already holds these phantoms ({tree.images} images); nothing written")
        return
    print(f"{tree.images} images of {tree.studies} studies of {tree.patients} patients: {tree.out / 'files'}")
    print(f"split, metadata and label tables: {tree.out}/mimic-cxr-2.*")
    print(f"ground truth, one line an image: {tree.out / TRUTH}")
    if args.masks:
        print(f"masks: {tree.out / 'masks'}")
