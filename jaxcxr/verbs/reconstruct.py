"""Say what an autoencoder loses: images against their reconstructions, with the worst ones as pictures.

Writes OUT/index.html, one file that needs nothing else, and the numbers as OUT/reconstructions.json, .csv and .tex:
RMSE, PSNR, SSIM, MS-SSIM above 160 pixels, LPIPS where its weights are given. They are of all images and by label and
view. With --phantoms, drawn radiographs that no model has seen, they are also by region and finding, with what a
classifier still sees in the reconstructions. Intervals are bootstraps by patient. Images of patients stay off the page
unless --show-real is given. A new OUT cannot be read by others.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EXAMPLE = "jaxcxr reconstruct --checkpoint phantom --phantoms 500 --size 64 --out runs/reconstructions"
_SEED = 9_000_001  # of phantoms
_MOST = 2000  # images, unless --count says more
_SHOWN = 12  # worst images of each metric


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="any checkpoint that has an autoencoder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--real", metavar="FOLDER", help="prepared folder, or FOLDER:SPLIT of one; or any folder of images"
    )
    which.add_argument("--phantoms", type=int, metavar="N", help="draw N phantoms in place of a folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the page and the numbers")
    parser.add_argument(
        "--size", type=int, default=0, help="pixels of a side; default: those of the first image, or 64"
    )
    parser.add_argument(
        "--count", type=int, default=_MOST, help="images of a folder at most, drawn at random; default: %(default)s"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images at once; default: %(default)s")
    parser.add_argument(
        "--lpips",
        action="append",
        default=[],
        metavar="NET=FILE",
        help="LPIPS by alex or vgg, with torchvision's file of its weights; may be repeated",
    )
    parser.add_argument(
        "--classifier",
        default="first",
        metavar="WHICH",
        help="of phantoms: first, second or a file; of radiographs: the workdir of one trained here, or xrv=FILE;"
        " default: %(default)s, for phantoms alone",
    )
    parser.add_argument("--show-real", action="store_true", help="put images of patients on the page")


class _Images(NamedTuple):
    """What is reconstructed, uint8 (N, S, S), whose they are, and what else `reconstructions.measure` takes."""

    name: str
    pixels: np.ndarray
    patients: np.ndarray
    known: Mapping[str, Any]


def run(args: argparse.Namespace) -> None:
    """Measures; raises UserError on a user's mistake."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.tables import check_own
    from jaxcxr.parallel import processes

    for option, value in (("count", args.count), ("batch-size", args.batch_size), ("phantoms", args.phantoms)):
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: may be 1 or more")
    if not 0 <= args.size <= 8192:
        raise UserError(f"--size {args.size}: may be from 0, which is that of the images, to 8192")
    check_own(args.out, "reconstructions.json")
    with processes.joined():
        _measure(args)


def _measure(args: argparse.Namespace) -> None:
    from jaxcxr import interop
    from jaxcxr.evaluation import reconstructions
    from jaxcxr.evaluation.asked import is_scorer, open_scorer
    from jaxcxr.parallel import processes

    lpips = _lpips(args.lpips)
    by = open_scorer(args.classifier) if is_scorer(args.classifier) else None
    images = _phantoms(args) if args.phantoms else _folder(args)
    pipeline = interop.load(args.checkpoint, only=("vae",))
    made = reconstructions.reconstruct(pipeline, images.pixels, args.batch_size)
    found = reconstructions.measure(
        images.pixels,
        made,
        images.patients,
        of=args.checkpoint.name,
        lpips=lpips,
        worst=_SHOWN,
        batch_size=args.batch_size,
        **images.known,
    )
    if by is not None:
        before, after = (by.scores(pixels) for pixels in (images.pixels, made))
        found.rows.extend(reconstructions.scores_kept(before, after, by, images.patients, args.checkpoint.name))

    def finish() -> None:
        _write(args, images, made, found)
        _say(args, found)

    processes.on_first(finish)


def _lpips(wanted: list[str]) -> dict[str, Any]:
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation import perceptual

    found = {}
    for text in wanted:
        net, equals, file = text.partition("=")
        if not equals or net not in perceptual.BACKBONES:
            raise UserError(f"--lpips {text}: give NET=FILE, where NET is {' or '.join(perceptual.BACKBONES)}")
        found[net] = perceptual.read(net, Path(file))
    return found


def _folder(args: argparse.Namespace) -> _Images:
    from jaxcxr.evaluation.evaluate import some
    from jaxcxr.evaluation.pictures import read_pictures, readable
    from jaxcxr.evaluation.sets import by_group, open_set

    images = some(open_set(args.real), args.count, seed=0)
    size = args.size or images.side()
    images, broken = readable(images, size)
    pixels = np.stack([picture.pixels for picture in read_pictures(images, size)])
    if broken:
        print(f"{images.name}: {broken} images cannot be read, and are left out")
    patients = np.array([item.patient for item in images.items])
    return _Images(images.name, pixels, patients, {"groups": by_group(images.items)})


def _phantoms(args: argparse.Namespace) -> _Images:
    from jaxcxr.evaluation.asked import is_scorer
    from jaxcxr.evaluation.reconstructions import phantom_regions
    from jaxcxr.phantoms.classifier import read
    from jaxcxr.phantoms.studies import phantom
    from jaxcxr.phantoms.truth import present

    drawn = [phantom(_SEED, number, args.size or 64) for number in range(args.phantoms)]
    there = np.stack([present(one.findings) for one in drawn])
    known: dict[str, Any] = {"regions": phantom_regions(drawn)}
    if not is_scorer(args.classifier):
        known |= {"classifier": read(args.classifier), "there": there}
    return _Images("phantoms", np.stack([one.image for one in drawn]), np.arange(len(drawn)), known)


def _write(args: argparse.Namespace, images: _Images, made: np.ndarray, found: Any) -> None:
    from jaxcxr.evaluation import tables
    from jaxcxr.evaluation.page.reconstructions import Reconstructed, render

    settings = {"checkpoint": str(args.checkpoint), "images": args.real or f"{args.phantoms} phantoms"}
    settings |= {"size": images.pixels.shape[1]}
    page = Reconstructed(
        checkpoint=args.checkpoint.name,
        images=images.name,
        of_patients=not args.phantoms,
        shown=bool(args.phantoms or args.show_real),
        rows=found.rows,
        left_out=found.left_out,
        pairs={
            metric: [(images.pixels[place], made[place]) for place in places] for metric, places in found.worst.items()
        },
    )
    about = {"left_out": found.left_out, "settings": settings}
    tables.write(args.out, "reconstructions", found.rows, about, render(page))


def _say(args: argparse.Namespace, found: Any) -> None:
    from jaxcxr.evaluation.tables import in_words

    for row in (row for row in found.rows if not row.group):
        print(f"{row.metric} {in_words(row.value, row.low, row.high)}, n = {row.n}")
    for line in found.left_out:
        print(f"left out: {line}")
    print(f"page: {args.out / 'index.html'}")
