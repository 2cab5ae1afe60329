"""The command line: `jaxcxr VERB …`, one module of `jaxcxr.verbs` a verb."""

import argparse
import errno
import importlib
import importlib.metadata
import itertools
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcxr import __version__, platforms
from jaxcxr.buckets import check_local
from jaxcxr.console import lasting_streams
from jaxcxr.errors import UserError, one_line
from jaxcxr.options import Parser

VERBS = {
    "phantoms": "draw synthetic chest radiographs with reports, laid out as MIMIC-CXR-JPG",
    "prepare": "turn a MIMIC-CXR-JPG or CheXpert tree or an image folder into ArrayRecord",
    "cache": "encode all images once, so that training need not",
    "plan": "say what a run takes on hardware that is not here",
    "train": "train or resume a model",
    "prompts": "write prompts that ask for known findings",
    "sample": "generate images from prompts",
    "convert": "convert checkpoints between Orbax and diffusers",
    "evaluate": "evaluate generated images and write a page to look at",
    "reconstruct": "say what an autoencoder loses",
    "readers": "have radiologists read images in a browser, and score their answers",
    "study": "say whether a classifier learns more with generated images",
    "audit": "say whether a model hands out its training images",
    "probe": "say what text encoders tell of findings",
    "configs": "list the configs that come with the package, or print one to start from",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 1 (a bug or a failure, lost output too) or 2 (a user's mistake, in one line)."""
    lost: list[str] = []
    try:
        with lasting_streams() as lost:
            code = _main(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # of --help or --version
        if stop.code or not lost:
            raise
        code = 0
    return code or int(bool(lost))


def _main(argv: list[str]) -> int:
    name = "jaxcxr"  # in front of an error
    try:
        verb = _verb(argv)
        name = f"jaxcxr {verb}"
        _run(verb, argv[1:])
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"{name}: a path is too long ({str(error.filename)[:60]}…); give a shorter one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 1
    return 0


def _verb(argv: list[str]) -> str:
    """The verb that the first argument names; raises UserError where it names none."""
    parser = Parser(prog="jaxcxr", description="Latent diffusion for chest X-rays and radiology reports, in JAX.")
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        commands.add_parser(verb, help=summary, add_help=False)
    # Checked here, since argparse lists the verbs only for a wrong one.
    if not argv:
        parser.error(f"no verb is given; it may be {', '.join(VERBS)}")
    if argv[0] not in (*VERBS, "-h", "--help", "--version"):
        parser.error(f"{argv[0]}: no such verb; it may be {', '.join(VERBS)}")
    return str(parser.parse_args(argv[:1]).verb)


def _run(verb: str, argv: list[str]) -> None:
    module = importlib.import_module(f"jaxcxr.verbs.{verb}")
    command = Parser(
        prog=f"jaxcxr {verb}",
        description=module.__doc__,
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.example = module.EXAMPLE
    module.add_arguments(command)
    _keep_compiled()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(platforms.GPU_MEMORY))
    # Config overrides are open-ended, so what argparse does not know goes to the config, which is strict.
    args, overrides = command.parse_known_args(_joined(argv))
    args.overrides = overrides
    _quiet_checkpoints()
    if args.overrides and not hasattr(args, "config"):
        raise UserError(f"{one_line(args.overrides[0])}: no such option; see jaxcxr {verb} --help")
    _check_local_paths(command, args)
    module.run(args)


def _quiet_checkpoints() -> None:
    """Keeps to itself what Orbax and TensorStore say beside what they raise.

    That is at every read that a file which is not needed is absent; and of a full disk or damaged files, once for each
    tensor and thread, that something failed, or that it ended after Orbax had closed the event loop at the first error.
    """
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _check_local_paths(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raises UserError for the first path that is an address, under the name that --help gives it."""
    nested = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    for action in itertools.chain(
        command._actions, *(each.choices[getattr(args, each.dest)]._actions for each in nested)
    ):
        found = getattr(args, action.dest, None)
        name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        for value in found if isinstance(found, list) else [found]:
            if isinstance(value, Path) or action.dest == "config":
                check_local(value, f"{name} ")


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments with `--config.a.b VALUE` written as `--config.a.b=VALUE`, as it is for other options."""
    joined: list[str] = []
    waiting = False
    for argument in argv:
        if waiting and not argument.startswith("--"):
            joined[-1] += f"={argument}"
            waiting = False
        else:
            joined.append(argument)
            waiting = re.fullmatch(r"--config\.[^=]+", argument) is not None
    return joined


def _versions() -> str:
    return f"jaxcxr {__version__}, jax {importlib.metadata.version('jax')}, Python {sys.version.split()[0]}"


def _keep_compiled() -> None:
    """Has JAX, which is imported by the verbs, keep what it compiles for the next time, in the user's cache folder.

    `JAX_COMPILATION_CACHE_DIR` names another folder; empty, it turns this off.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "jaxcxr" / "xla"))


if __name__ == "__main__":
    sys.exit(main())
