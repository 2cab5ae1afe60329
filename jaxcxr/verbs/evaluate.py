"""Evaluate generated images against real ones: numbers with intervals, and a page to look at.

Writes OUT/index.html, one file that needs nothing else, and the numbers as OUT/evaluation.json, .csv and .tex. --real
and --generated take prepared folders, trees of `jaxcxr phantoms`, folders of `jaxcxr sample`, and any other folder of
images, of whatever model. Each number stands beside that of real images of other patients, with a 95 % interval. Where
--real is a tree of phantoms, a classifier says whether each image shows the findings that its prompt asked for (write
such prompts with `jaxcxr prompts`). Real images, report texts, the config's samples.prompts and what --runs
reconstructed stay off the page unless --show-real is given. Features are kept in OUT/features: run it again to add a
metric or a set. A new OUT cannot be read by others.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = (
    "jaxcxr evaluate --config configs/phantom.py --real runs/phantoms --generated runs/samples --out runs/evaluation"
)

_MOST_PHANTOMS = 500  # real ones that a classifier sees
_MOST_SHOWN = 500  # images of a set that the page chooses from, where no classifier sees all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--config",
        help="config file, FILE.py or FILE.py:STAGE; gives the size and config.evaluation. Without one, images are"
        " brought to the size of the first generated image",
    )
    parser.add_argument(
        "--real",
        required=True,
        metavar="FOLDER",
        help="prepared folder, or FOLDER:SPLIT of one; tree of `jaxcxr phantoms`; or folder of real images",
    )
    parser.add_argument(
        "--generated", required=True, nargs="+", metavar="FOLDER", help="folders of images, of one model each"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the page and the numbers")
    parser.add_argument(
        "--extractor",
        action="append",
        metavar="NAME[/PREPROCESSING]",
        help="network whose features are compared, or the workdir of a trained classifier, in place of"
        " config.evaluation.extractors; may be repeated",
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="weights of an extractor; may be repeated"
    )
    parser.add_argument(
        "--runs", nargs="*", type=Path, default=[], metavar="WORKDIR", help="workdirs whose curves the page shows"
    )
    parser.add_argument(
        "--classifier",
        default="first",
        metavar="WHICH",
        help="of phantoms: first, or second where the first has selected the pictures, or a file; of radiographs: the"
        " workdir of one trained with configs/classifier.py, or xrv=FILE; default: %(default)s",
    )
    parser.add_argument("--title", default="Synthetic chest X-rays", help="of the page; default: %(default)s")
    parser.add_argument(
        "--show-real", action="store_true", help="put real images, prompts and reconstructions on the page"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates; raises UserError on a user's mistake."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.asked import evaluate_asked, is_scorer, open_scorer
    from jaxcxr.evaluation.curves import read_run
    from jaxcxr.evaluation.evaluate import evaluate
    from jaxcxr.evaluation.pictures import readable
    from jaxcxr.evaluation.sets import open_set
    from jaxcxr.evaluation.tables import check_own
    from jaxcxr.parallel import processes

    config = _config(args)
    settings, left_out = _settings(args, config)
    check_own(args.out, "evaluation.json")
    runs = [read_run(workdir) for workdir in args.runs]
    generated, real = [open_set(each) for each in args.generated], open_set(args.real)
    size = config.data.size or generated[0].side()
    phantoms = real.kind == "phantoms" and not is_scorer(args.classifier)
    if not phantoms and not is_scorer(args.classifier) and args.classifier != "first":
        raise UserError(
            f"--classifier {args.classifier}: no such folder; give the workdir of a classifier, or xrv=FILE; others are"
            " of phantoms, for a tree of `jaxcxr phantoms` as --real"
        )
    if phantoms:  # a classifier sees all of these
        real, generated = readable(real, size)[0], [readable(images, size)[0] for images in generated]
    with processes.joined():
        processes.on_first(lambda: _make_out(args.out))
        result = evaluate(real, generated, settings, size, args.out / "features", config.seed, nearest=args.show_real)
        result.left_out = left_out + result.left_out
        if is_scorer(args.classifier):  # by all processes, as it is spread over their devices
            rows, lines = evaluate_asked(real, generated, open_scorer(args.classifier), size, config.seed)
            result.rows, result.left_out = result.rows + rows, result.left_out + lines

        def finish() -> None:
            classified = _classified(args, real, generated, size, result) if phantoms else {}
            _write(args, config, size, real, generated, result, classified, runs)
            _say(args, result, classified)

        processes.on_first(finish)


def _config(args: argparse.Namespace) -> Any:
    from ml_collections import ConfigDict

    from jaxcxr import config as configs
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.settings import defaults

    if args.config:
        config = configs.load(args.config, args.overrides)
    else:
        plain = {"seed": 0, "data": {"size": 0}, "evaluation": defaults().to_dict()}
        config = configs.changed(ConfigDict(plain), args.overrides)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--config.seed={config.seed}: may be from 0 to 2^32 - 1")
    if not 0 <= config.data.size <= 8192:
        raise UserError(f"--config.data.size={config.data.size}: may be from 0, which is that of the images, to 8192")
    return config


def _settings(args: argparse.Namespace, config: Any) -> tuple[Any, list[str]]:
    """What to compute; the default extractor is left out, with a line, where its package is not installed."""
    import dataclasses

    from jaxcxr.errors import UserError
    from jaxcxr.evaluation import settings as evaluation
    from jaxcxr.evaluation.extractors import EXTRACTORS

    settings = evaluation.read(config.evaluation)
    chosen = tuple(args.extractor or settings.extractors)
    settings = dataclasses.replace(settings, extractors=chosen, weights=(*settings.weights, *args.weights))
    names = {name.partition("/")[0] for name in chosen}
    if idle := [each for each in args.weights if each.partition("=")[0] not in names]:
        raise UserError(f"--weights {idle[0]}: is of no extractor that is asked for; these are {', '.join(chosen)}")
    default = evaluation.Settings().extractors
    if chosen != default or settings.weights or EXTRACTORS[default[0]].bundled() is not None:
        return settings, []
    line = f"{default[0]}: has no weights here; {EXTRACTORS[default[0]].source}, or choose another with --extractor"
    return dataclasses.replace(settings, extractors=()), [line]


def _classified(args: argparse.Namespace, real: Any, generated: list, size: int, result: Any) -> dict[str, Any]:
    """By set: what a classifier of phantoms sees in images that were asked to show findings; its rates are added."""
    import itertools

    from jaxcxr.evaluation import findings
    from jaxcxr.evaluation.page import Classified
    from jaxcxr.evaluation.pictures import read_pictures
    from jaxcxr.phantoms.classifier import read

    asked = [images for images in generated if all(item.asked for item in images.items)]
    for images in (images for images in generated if images not in asked):
        silent = sum(item.asked is None for item in images.items)
        result.left_out.append(
            f"{images.name}: findings, as {silent} of {len(images.items)} images have no `asked` field in a manifest;"
            " sample from prompts that `jaxcxr prompts` wrote"
        )
    if not asked:
        return {}
    classifier = read(args.classifier)
    seen_at = classifier.reads_at(size)
    phantoms = read_pictures(real, size, itertools.islice(real.items, _MOST_PHANTOMS))
    found = {}
    for images in asked:
        pictures = read_pictures(images, size)
        shown = findings.report(pictures, classifier)
        ceiling = findings.report(phantoms, classifier, findings.kinds_asked(pictures))
        result.rows += findings.as_rows(images.name, shown, ceiling, classifier.name)
        found[images.name] = Classified(classifier, seen_at, shown, ceiling)
    return found


def _make_out(out: Path) -> None:
    from jaxcxr.errors import UserError
    from jaxcxr.files import make_folder

    try:
        make_folder(out, private=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from error


def _config_text(config: Any, show_prompts: bool) -> str:
    """The config as JSON text, without the prompts of samples where these may be of patients."""
    import json

    from jaxcxr import config as configs

    values = json.loads(configs.to_json(config))
    if not show_prompts and "prompts" in values.get("samples", {}):
        values["samples"]["prompts"] = "left out; --show-real shows them"
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _numbers(args: argparse.Namespace, size: int, result: Any, classified: dict[str, Any]) -> dict[str, Any]:
    """What evaluation.json holds beside the rows."""
    how = {"config": args.config, "real": args.real, "generated": args.generated}
    numbers: dict[str, Any] = {
        "left_out": result.left_out,
        "counts": result.counts,
        "extractors": result.used,
        "settings": how | {"size": size, "synthetic": True},
    }
    for one in list(classified.values())[:1]:
        about = one.classifier.about
        tables = {name: table.as_dict() for name, table in about.tables.items()}
        numbers["classifier"] = {"name": one.classifier.name, "size": one.size, "training": dict(about.training)}
        numbers["classifier"]["held_out"] = tables
    return numbers


def _write(
    args: argparse.Namespace,
    config: Any,
    size: int,
    real: Any,
    generated: list,
    result: Any,
    classified: dict[str, Any],
    runs: list,
) -> None:
    import dataclasses
    import itertools

    from jaxcxr.evaluation import tables
    from jaxcxr.evaluation.page import Page, render
    from jaxcxr.evaluation.pictures import read_pictures
    from jaxcxr.parsing import to_json

    drawn = real.kind == "phantoms"
    pictures = {}
    for images in generated:
        whole = images.name in classified
        some = itertools.islice(images.items, None if whole else _MOST_SHOWN)
        pictures[images.name] = read_pictures(images, size, some, skip=not whole)
    if not (args.show_real or drawn):  # a prompt may be a report's text
        pictures = {name: [dataclasses.replace(one, text="") for one in some] for name, some in pictures.items()}
    visible = drawn or args.show_real
    beside = read_pictures(real, size, itertools.islice(real.items, _MOST_PHANTOMS if drawn else 24), skip=True)
    pairs = (
        [(*read_pictures(real, size, each[1:3]), each.distance) for each in result.nearest] if args.show_real else []
    )
    about = _numbers(args, size, result, classified)
    numbers = to_json({"rows": tables.to_values(result.rows), **about}).decode()
    page = Page(
        title=args.title,
        generated=pictures,
        real=beside if visible else [],
        real_name="phantoms" if drawn else "real images",
        rows=result.rows,
        left_out=result.left_out,
        counts=result.counts,
        classified=classified,
        runs=runs,
        settings={
            "Evaluation": numbers,
            "Config": _config_text(config, args.show_real),
        },
        reconstructions=args.show_real,
        neighbours=pairs,
    )
    tables.write(args.out, "evaluation", result.rows, about, render(page))


def _say(args: argparse.Namespace, result: Any, classified: dict[str, Any]) -> None:
    from jaxcxr.evaluation.tables import in_words

    for row in (
        row for row in result.rows if not row.group and row.extractor.partition("/")[0] != "phantom-classifier"
    ):
        floor = "" if row.floor is None else f"; real images {in_words(row.floor, row.floor_low, row.floor_high)}"
        number = in_words(row.value, row.low, row.high)
        print(f"{row.set}: {row.metric} {number}{floor}, n = {row.n}{', ' if row.extractor else ''}{row.extractor}")
    for name, one in classified.items():
        rate, (low, high) = one.generated.rate, one.generated.rate.interval
        print(
            f"{name}: {rate.hits} of {rate.total} images show what was asked for: "
            f"{100 * rate.share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
    for one in list(classified.values())[:1]:
        worst, of = one.worst()
        print(
            f"the classifier reads {100 * one.real.rate.share:.1f} % of the tree's held-out phantoms; "
            f"its worst rate on its own is {100 * worst.share:.1f} %, its {of}"
        )
    for line in result.left_out:
        print(f"left out: {line}")
    print(f"page: {args.out / 'index.html'}")
