"""Options of the command line, whose mistakes are errors of one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from jaxcxr.errors import UserError, one_line


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError where argparse's prints the usage and exits.

    Attributes:
      example: a command that works.
    """

    example = ""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message, an example and where all options are listed."""
        said = one_line(message.removeprefix("argument "))
        example = f"type for example {self.example}; " if self.example else ""
        raise UserError(f"{said}; {example}see {self.prog} --help")


def whole(least: int, most: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number from `least` to `most`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r:.100} may be a whole number from {least} to {most:,}")
        return value

    return number


def add_adapters(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds --adapter and --adapter-weight, which `interop.adapters.merged` takes; `purpose` is for the help."""
    parser.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help=f"LoRA or textual inversion to {purpose}: file, folder, workdir or ORG/NAME of the hub; may be repeated",
    )
    parser.add_argument(
        "--adapter-weight",
        type=float,
        action="append",
        default=[],
        metavar="W",
        help="strength of an --adapter, in the same order; default: 1",
    )
