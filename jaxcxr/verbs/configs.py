"""List the configs that come with the package, or print one to start from.

Every --config takes such a name, NAME or NAME:STAGE, or a file of one's own. To write one, print a config into a file
and change it: what it imports of the others is still found.
"""

import argparse
import ast

EXAMPLE = "jaxcxr configs finetune"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="config to print; default: list them all")


def run(args: argparse.Namespace) -> None:
    """Prints a config, or names; raises UserError for a name that is none."""
    from jaxcxr import config as configs

    if args.name is not None:
        print(configs.find(args.name)[0].read_text(encoding="utf-8"), end="")
        return
    width = max(map(len, configs.names()))
    for name in configs.names():
        source = (configs.FOLDER / f"{name}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        print(f"{name:{width}}  {summary}")
