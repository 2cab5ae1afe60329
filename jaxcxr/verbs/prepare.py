"""Turn a tree of MIMIC-CXR (JPG or DICOM) or CheXpert, or an image folder, into ArrayRecord.

Writes OUT whole or not at all: the records by split, the tokenizer, README.md (the data card), summary.json,
contact_sheet.png and quarantine.jsonl, which lists every bad row with its reason. Safe to run again: the same
settings and tables are recognised, anything else is refused.
"""

import argparse
from pathlib import Path

EXAMPLE = "jaxcxr prepare --config configs/phantom.py --source runs/phantoms --out runs/data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, type=Path, help="config file; its `data` section is used")
    parser.add_argument("--source", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new")


def run(args: argparse.Namespace) -> None:
    """Prepares the data; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.data.prepare import prepare

    prepare(configs.load(args.config, args.overrides).data, args.source, args.out)
