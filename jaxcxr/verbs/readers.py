"""Have radiologists read real and generated images, blinded, in a browser; and score what they say.

`make` writes STUDY, a folder whose index.html opens without a server, and STUDY.key.json beside it. Give readers the
folder and a code each, and keep the key. `score` takes the key and the CSV files that readers export, and writes a page
and the numbers. The images of a study are what --real and --generated have: patients' stay patients'.
"""

import argparse
from pathlib import Path
from typing import Any

from jaxcxr.options import whole

EXAMPLE = "jaxcxr readers make --real runs/data --generated runs/samples --out runs/study"
_SCORE = "jaxcxr readers score --key runs/study.key.json --out runs/scores readers-*.csv"
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="make|score")
    make = commands.add_parser(
        "make", help="write a study", epilog=f"example:\n  {EXAMPLE}", formatter_class=_AS_WRITTEN
    )
    score = commands.add_parser(
        "score", help="score answers", epilog=f"example:\n  {_SCORE}", formatter_class=_AS_WRITTEN
    )
    _add_make(make)
    score.add_argument("answers", nargs="+", type=Path, metavar="CSV", help="files that readers exported")
    score.add_argument("--key", required=True, type=Path, metavar="FILE.json", help="the study's key")
    score.add_argument("--out", required=True, type=Path, help="folder for the page and the numbers")
    score.add_argument(
        "--resamples", type=whole(10, 100_000), default=1000, help="of the bootstrap; default: %(default)s"
    )
    score.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of the bootstrap; default: %(default)s")


def _add_make(make: argparse.ArgumentParser) -> None:
    make.add_argument(
        "--real", metavar="FOLDER", help="prepared folder, or FOLDER:SPLIT of one; tree of phantoms; folder of images"
    )
    make.add_argument(
        "--generated", required=True, nargs="+", metavar="FOLDER", help="folders of images, of one model each"
    )
    make.add_argument("--out", required=True, type=Path, metavar="STUDY", help="folder to write, new")
    make.add_argument(
        "--key", type=Path, metavar="FILE.json", help="where the key goes, outside of STUDY; default: STUDY.key.json"
    )
    make.add_argument(
        "--tasks",
        default="real,realism",
        metavar="LIST",
        help="comma list, in the order of reading: real (or synthetic, with confidence), realism (1 to 5), match (of"
        " image and text, -2 to 2), finding (is what was asked for there, with confidence), better (which of two);"
        " default: %(default)s",
    )
    make.add_argument(
        "--count",
        type=whole(1, 100_000),
        default=30,
        help="images of each class in each task, pairs of `better`; default: %(default)s",
    )
    make.add_argument(
        "--repeats", type=whole(0, 100_000), default=6, help="items of each task shown twice; default: %(default)s"
    )
    make.add_argument("--readers", type=whole(1, 1000), default=2, help="codes to give out; default: %(default)s")
    make.add_argument(
        "--size", type=whole(0, 8192), default=0, help="pixels of a side; default: those of the first generated image"
    )
    make.add_argument(
        "--fit",
        choices=("pad", "crop"),
        default="pad",
        help="how images that are not square become so: black at their sides, or their centre; default: %(default)s",
    )
    make.add_argument(
        "--jpeg",
        type=_quality,
        metavar="QUALITY",
        help="one JPEG of 1 to 100 for every image on its way, or none; default: 90, and none where all sets are"
        " lossless files",
    )
    make.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of all draws; default: %(default)s")
    make.add_argument("--title", default="Reader study", help="of the page; default: %(default)s")
    make.add_argument("--one-file", action="store_true", help="put the images into index.html, as for a tablet")


def _quality(text: str) -> int:
    return 0 if text == "none" else whole(1, 100)(text)


def run(args: argparse.Namespace) -> None:
    """Makes or scores; raises UserError on a user's mistake."""
    (_make if args.command == "make" else _score)(args)


def _make(args: argparse.Namespace) -> None:
    from jaxcxr.readers import make
    from jaxcxr.readers.design import Settings

    key = args.key or Path(f"{args.out}.key.json")
    make.check_places(args.out, key)
    sets = _sets(args)
    folders = [images for images, _ in sets.values()]
    settings = Settings(
        tasks=tuple(name.strip() for name in args.tasks.split(",") if name.strip()),
        count=args.count,
        repeats=args.repeats,
        readers=args.readers,
        size=args.size or folders[-len(args.generated)].side(),
        fit=args.fit,
        jpeg=make.jpeg_quality(folders) if args.jpeg is None else args.jpeg,
        seed=args.seed,
        title=args.title,
    )
    study = make.make(sets, settings, args.out, key, args.one_file)
    print(f"study {study.key.study}: {study.items} items, {study.images} images: {args.out / 'index.html'}")
    print(f"key, not for readers: {key}")
    print(f"reader codes, one each: {', '.join(study.key.readers)}")
    for note in study.key.notes:
        print(note)
    if any(images.kind != "phantoms" and kind == "real" for images, kind in sets.values()):
        print("The folder holds real images: keep it where these may be kept.")


def _sets(args: argparse.Namespace) -> dict[str, Any]:
    """The sets with their class, by names that differ."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.sets import open_set

    places = [(place, "real") for place in (args.real,) if place is not None]
    places += [(place, "synthetic") for place in args.generated]
    opened = [(place, open_set(place), kind) for place, kind in places]
    names = [images.name for _, images, _ in opened]
    found = {place if names.count(images.name) > 1 else images.name: (images, kind) for place, images, kind in opened}
    if len(found) < len(opened):
        raise UserError("--real, --generated: name a folder twice; give each once")
    return found


def _score(args: argparse.Namespace) -> None:
    from jaxcxr.evaluation.tables import check_own, in_words
    from jaxcxr.readers import answers, key, report, scores

    check_own(args.out, report.NUMBERS)
    truth = key.read(args.key)
    said = answers.read(args.answers, truth)
    found = scores.score(said, truth, args.resamples, args.seed)
    report.write(args.out, truth, said, found)
    for line in answers.lines(said):
        print(line)
    for row in found.rows:
        if row.reader == scores.ALL and not row.measure.startswith(("share of", "seconds")):
            what = f"{row.task}: {row.measure}" + (f", {row.of}" if row.of else "")
            print(f"{what} {in_words(row.value, row.low, row.high)}, n = {row.n}")
    print(f"page: {args.out / 'index.html'}")
