"""Say whether a classifier learns more with generated images: trains every arm of an augmentation study and tests it.

The arms are real images; generated ones; real ones with the first 1, 2, … folders of --synthetic; and a training on all
of those before the real ones. An image is seen as often in each; with the same number of steps as the real arm each is
there a second time, as a longer training may otherwise pass for better data. Every arm is trained with --seeds seeds.
Writes OUT/study.json, .csv and .tex: AUROC by label, view, sex, age and race where the data have them, the gain over
the real arm, and the underdiagnosis gap, with intervals by patient. Runs are kept in OUT/runs: run it again to resume.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = (
    "jaxcxr study --config configs/classifier.py --real runs/data --synthetic runs/drawn-1 runs/drawn-2"
    " --out runs/study"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="of a classifier; its length is the real arm's")
    parser.add_argument("--real", required=True, metavar="DATA", help="prepared folder with a split to test on")
    parser.add_argument(
        "--synthetic", required=True, nargs="+", metavar="DATA", help="prepared folders of generated images"
    )
    parser.add_argument("--test", nargs="*", default=[], metavar="FOLDER", help="further real images with labels")
    parser.add_argument("--out", required=True, type=Path, help="folder for the runs and the numbers")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm; default: %(default)s")
    parser.add_argument("--no-matched", action="store_true", help="leave out the arms of equal steps")
    parser.add_argument("--no-pretrained", action="store_true", help="leave out the training on generated images first")


def run(args: argparse.Namespace) -> None:
    """Trains and tests; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation import study
    from jaxcxr.evaluation.tables import check_own
    from jaxcxr.parallel import processes
    from jaxcxr.training.feed import with_steps

    config = configs.load(args.config, args.overrides)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: may be 1 or more")
    if config.method != "classifier":
        raise UserError(f"--config {args.config}: has config.method={config.method!r}; a study wants 'classifier'")
    classes, others = study.common_classes(args.real, args.synthetic)
    with config.unlocked():
        config.data.path = args.real
        config.model.classifier.classes = tuple(config.model.classifier.classes) or classes
    steps = with_steps(config).steps
    chosen = study.arms(
        args.real, args.synthetic, steps, matched=not args.no_matched, pretrained=not args.no_pretrained
    )
    check_own(args.out, "study.json")
    with processes.joined():
        processes.on_first(lambda: _prepare(args, others))
        _run(args, config, chosen)


def _prepare(args: argparse.Namespace, others: list[str]) -> None:
    from jaxcxr.errors import UserError
    from jaxcxr.files import make_folder

    if others:
        print(f"labels that not every folder has are left out: {', '.join(others)}")
    try:
        make_folder(args.out, private=True)
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); name another folder") from error


def _run(args: argparse.Namespace, config: Any, chosen: list) -> None:
    import functools

    from jaxcxr.errors import UserError
    from jaxcxr.evaluation import study
    from jaxcxr.evaluation.pictures import readable
    from jaxcxr.evaluation.sets import open_set
    from jaxcxr.parallel import processes

    sets = [open_set(place) for place in (f"{args.real}:validate", f"{args.real}:test", *args.test)]
    size = sets[1].side()
    (validation, _), *tested = [readable(each, size) for each in sets]  # before hours of training
    for images, _ in tested:
        if not any(item.groups.get("label") for item in images.items):
            raise UserError(f"{images.name}: none of its images has a label to test on; give it a table with labels")
    for images, broken in tested:
        processes.on_first(lambda images=images, broken=broken: _say_broken(images, broken))  # type: ignore[misc]
    workdirs: dict[str, list[Path]] = {}
    for seed in range(args.seeds):  # all arms once first, so that a study that is stopped has something to show
        for number, arm in enumerate(chosen, 1):
            said = f"arm {number} of {len(chosen)}, seed {seed + 1} of {args.seeds}: {arm.name}"
            processes.on_first(lambda said=said: print(said))  # type: ignore[misc]
            workdir = study.train_arm(arm, config, args.out / "runs", seed)
            if workdir is None:
                processes.on_first(lambda: print(f"{args.out}: stopped; run it again to resume"))
                return
            workdirs.setdefault(arm.name, []).append(workdir)
    predict = functools.partial(study.predict, size=size)
    found = [study.predictions(images, validation, workdirs, predict) for images, _ in tested]
    processes.on_first(lambda: _write(args, [row for each in found for row in study.rows(each)]))


def _say_broken(images: Any, broken: int) -> None:
    if broken:
        print(f"{images.name}: {broken} images cannot be read, and are left out")


def _write(args: argparse.Namespace, rows: list) -> None:
    from jaxcxr.evaluation import tables

    settings = {"config": args.config, "real": args.real, "synthetic": args.synthetic, "seeds": args.seeds}
    tables.write(args.out, "study", rows, {"settings": settings})
    for row in (row for row in rows if not row.group):
        print(f"{row.set}: {row.metric} {tables.in_words(row.value, row.low, row.high)}, n = {row.n}, {row.extractor}")
    print(f"numbers: {args.out / 'study.json'}")
