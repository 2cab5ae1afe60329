"""Evaluate generated images and write a page to look at.

Writes OUT/index.html, one file that needs nothing else, and OUT/evaluation.json. Where --real is a tree that
`jaxcxr phantoms` wrote, a small classifier says whether each image shows the findings that its prompt asked for, on
which side and how large (write such prompts with `jaxcxr prompts`). Other real images, report texts, the config's
samples.prompts and what --runs reconstructed stay off the page unless --show-real is given. Safe to run again: page
and numbers are replaced. A new OUT cannot be read by others.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = (
    "jaxcxr evaluate --config configs/phantom.py --real runs/phantoms --generated runs/samples --out runs/evaluation"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="config file, FILE.py or FILE.py:STAGE; gives the size")
    parser.add_argument("--real", required=True, type=Path, help="tree of `jaxcxr phantoms`, or folder of real images")
    parser.add_argument("--generated", required=True, type=Path, help="folder that `jaxcxr sample` wrote")
    parser.add_argument("--out", required=True, type=Path, help="folder for the page and the numbers")
    parser.add_argument(
        "--runs", nargs="*", type=Path, default=[], metavar="WORKDIR", help="workdirs whose curves the page shows"
    )
    parser.add_argument(
        "--classifier",
        default="first",
        metavar="NAME",
        help="first, or second where the first has selected the pictures, or a file; default: %(default)s",
    )
    parser.add_argument("--title", default="Synthetic chest X-rays", help="of the page; default: %(default)s")
    parser.add_argument(
        "--show-real", action="store_true", help="put real images, prompts and reconstructions on the page"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation import pictures
    from jaxcxr.evaluation.curves import read_run

    config = configs.load(args.config, args.overrides)
    size = config.data.size
    if not 1 <= size <= 8192:
        raise UserError(f"--config.data.size={size}: may be from 1 to 8192")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out}: is a file; name a folder")
    runs = [read_run(workdir) for workdir in args.runs]
    generated = pictures.read_generated(args.generated, size)
    if pictures.phantom_seed(args.real) is None:
        _show(args, config, generated, runs)
    else:
        _classify(args, config, generated, runs)


def _classify(args: argparse.Namespace, config: Any, generated: list, runs: list) -> None:
    """With phantoms: the numbers, and a page where everything may be seen."""
    from jaxcxr.evaluation import findings, pictures
    from jaxcxr.evaluation.page import Classified
    from jaxcxr.phantoms.classifier import read

    findings.require_asked(generated, args.generated)
    classifier = read(args.classifier)
    size = classifier.reads_at(config.data.size)
    real = pictures.read_phantoms(args.real, config.data.size, limit=500)
    shown = findings.report(generated, classifier)
    ceiling = findings.report(real, classifier, findings.kinds_asked(generated))
    numbers = (
        {"total": len(generated)}
        | shown.as_dict()
        | {
            "real": {"total": len(real)} | ceiling.as_dict(),
            "classifier": {"name": classifier.name, "size": size, "training": dict(classifier.about.training)}
            | {"held_out": {name: table.as_dict() for name, table in classifier.about.tables.items()}},
        }
    )
    classified = Classified(classifier, size, shown, ceiling)
    _write(args, config, numbers, generated, real, "phantoms", classified, runs)
    low, high = shown.rate.interval
    worst, of = classified.worst()
    print(
        f"{shown.rate.hits} of {shown.rate.total} images show what was asked for: "
        f"{100 * shown.rate.share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )
    print(
        f"the classifier reads {100 * ceiling.rate.share:.1f} % of the tree's held-out phantoms; "
        f"its worst rate on its own is {100 * worst.share:.1f} %, its {of}"
    )
    print(f"page: {args.out / 'index.html'}")


def _show(args: argparse.Namespace, config: Any, generated: list, runs: list) -> None:
    """Without ground truth: the page alone, with nothing of a patient on it unless that was asked for."""
    import dataclasses

    from jaxcxr.evaluation import pictures

    real = pictures.read_images(args.real, config.data.size, limit=24) if args.show_real else []
    if not args.show_real:  # a prompt may be a report's text
        generated = [dataclasses.replace(picture, text="") for picture in generated]
    _write(args, config, {"total": len(generated)}, generated, real, "real images", None, runs)
    print(f"{len(generated)} images, without numbers: {args.real} is not a tree that `jaxcxr phantoms` wrote")
    print(f"page: {args.out / 'index.html'}")


def _make_out(args: argparse.Namespace) -> None:
    from jaxcxr.errors import UserError
    from jaxcxr.files import make_folder

    try:
        make_folder(args.out, private=True)
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); name another folder") from error


def _config_text(config: Any, show_prompts: bool) -> str:
    """The config as JSON text, without the prompts of samples where these may be of patients."""
    import json

    from jaxcxr import config as configs

    values = json.loads(configs.to_json(config))
    if not show_prompts and "prompts" in values.get("samples", {}):
        values["samples"]["prompts"] = "left out; --show-real shows them"
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _write(
    args: argparse.Namespace,
    config: Any,
    numbers: dict,
    generated: list,
    real: list,
    name: str,
    classified: Any,
    runs: list,
) -> None:
    import json

    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.page import Page, render
    from jaxcxr.files import replace_file

    how = {"config": str(args.config), "real": str(args.real), "generated": str(args.generated)}
    numbers = numbers | {"settings": how | {"size": config.data.size, "synthetic": True}}
    text = json.dumps(numbers, indent=2) + "\n"
    page = Page(
        title=args.title,
        generated=generated,
        real=real,
        real_name=name,
        classified=classified,
        runs=runs,
        settings={"Evaluation": text, "Config": _config_text(config, args.show_real)},
        reconstructions=args.show_real,
    )
    _make_out(args)
    try:
        replace_file(args.out / "evaluation.json", text.encode())
        replace_file(args.out / "index.html", render(page).encode())
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); name another folder") from error
