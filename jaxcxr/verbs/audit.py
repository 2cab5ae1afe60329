"""Say whether a model hands out its training images, and write a page to look at.

Finds the training image that is most similar to each generated one. A threshold is calibrated on held-out patients, at
the rate of false alarms that --rate states; the share of planted copies that it finds is measured and printed. With
--checkpoint the model is asked too: whether its errors tell its training images from others, and which prompts move it
furthest. Writes OUT/audit.json and OUT/index.html, which have no image or text of a patient, and OUT/local/pairs.html,
which has: it stays on this machine. What is computed is kept in OUT: run it again to resume, or to add an extractor. A
new OUT cannot be read by others.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = (
    "jaxcxr audit --train runs/data:train --held-out runs/data:test --generated runs/samples"
    " --checkpoint runs/diffusion --out runs/audit"
)
_EXTRACTORS = ("efficientnet-lite0", "pixels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    folder = "FOLDER"
    parser.add_argument(
        "--train",
        required=True,
        metavar=folder,
        help="all images that the model was trained on: DATA:train, or a folder",
    )
    parser.add_argument(
        "--held-out", required=True, metavar=folder, help="images of other patients of the same source: DATA:test"
    )
    parser.add_argument("--generated", required=True, metavar=folder, help="images that the model has drawn")
    parser.add_argument("--out", required=True, type=Path, help="folder for the pages and the numbers")
    parser.add_argument("--checkpoint", type=Path, help="the model, to be asked too")
    parser.add_argument(
        "--extractor",
        action="append",
        metavar="NAME",
        help="what similarity is of: pixels, sscd, or an extractor of jaxcxr evaluate; may be repeated; default: "
        f"{' and '.join(_EXTRACTORS)}",
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="weights of an extractor; may be repeated"
    )
    parser.add_argument(
        "--rate", type=float, default=0.01, help="of false alarms; needs about 3/RATE held-out patients; default: 0.01"
    )
    for name, default, what in (
        ("size", 0, "pixels of a side at which images are compared; default: those of the first generated image"),
        ("images", 0, "generated images at most, drawn at random; default: all"),
        ("planted", 200, "planted copies of each kind; default: 200"),
        ("members", 1000, "training images at most that the model is asked about; default: 1000"),
        ("prompts", 200, "prompts of each kind that the model is asked about; 0: none; default: 200"),
        ("steps", 50, "of the drawing in which a prompt's effect is measured; default: 50"),
        ("batch-size", 16, "images at once; default: 16"),
        ("seed", 0, "of what is drawn; default: 0"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--guidance", type=float, default=7.5, help="of that drawing; default: 7.5")
    parser.add_argument("--title", default="Audit", help="of the pages; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Audits; raises UserError on a user's mistake."""
    from jaxcxr import interop
    from jaxcxr.audit.audit import Settings, audit
    from jaxcxr.audit.similarity import choose
    from jaxcxr.evaluation.tables import check_own
    from jaxcxr.parallel import processes

    keys = ("rate", "size", "images", "planted", "members", "prompts", "steps", "guidance", "batch_size", "seed")
    settings = Settings(**{key: getattr(args, key) for key in keys})
    settings.check()
    check_own(args.out, "audit.json")
    names, left_out = _extractors(args)
    with processes.joined():
        seen = choose(names, args.weights)
        processes.on_first(lambda: _make_out(args.out))
        model = interop.load(args.checkpoint) if args.checkpoint else None
        found = audit(args.train, args.held_out, args.generated, seen, settings, args.out, model)
        found.left_out = left_out + found.left_out
        processes.on_first(lambda: _write(args, settings, found))


def _extractors(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The names, without the default one whose weights are not here, and a line that says so."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.extractors import EXTRACTORS

    names = list(args.extractor or _EXTRACTORS)
    asked = {name.partition("/")[0] for name in names}
    if idle := [each for each in args.weights if each.partition("=")[0] not in asked]:
        raise UserError(f"--weights {idle[0]}: is of no extractor that is asked for; these are {', '.join(names)}")
    given = {each.partition("=")[0] for each in args.weights}
    first = _EXTRACTORS[0]
    if args.extractor or first in given or EXTRACTORS[first].bundled() is not None:
        return names, []
    return names[1:], [f"{first}: has no weights here; {EXTRACTORS[first].source}, or choose another with --extractor"]


def _make_out(out: Path) -> None:
    from jaxcxr.errors import UserError
    from jaxcxr.files import make_folder

    try:
        make_folder(out, private=True)
        make_folder(out / "local", private=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from error


def _write(args: argparse.Namespace, settings: Any, found: Any) -> None:
    import dataclasses

    from jaxcxr.audit import numbers, page
    from jaxcxr.errors import UserError
    from jaxcxr.files import replace_file
    from jaxcxr.parsing import to_json

    how = {name: getattr(args, name) for name in ("train", "held_out", "generated")}
    how |= {"checkpoint": args.checkpoint and str(args.checkpoint), **dataclasses.asdict(settings)}
    values = numbers.as_values(found) | {"settings": how}
    files = {"audit.json": to_json(values), "index.html": page.render(found, args.title).encode()}
    local = args.out / "local"
    try:
        replace_file(local / "pairs.html", page.render_pairs(found, args.title).encode(errors="replace"), private=True)
        for file, data in files.items():
            replace_file(args.out / file, data)
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); name another folder") from error
    for line in numbers.lines(found):
        print(line)
    print(f"page: {args.out / 'index.html'}; for this machine alone: {local / 'pairs.html'}")
