"""Turn a tree of MIMIC-CXR (JPG or DICOM), CheXpert or Open-i, an image folder or Parquet files into ArrayRecord.

The source may be a data set of the Hugging Face Hub, ORG/NAME: of an image folder or of Parquet files.

Writes OUT whole or not at all: the records by split, the tokenizer, README.md (the data card), summary.json,
contact_sheet.png and quarantine.jsonl, which lists every bad row by its number, with the reason. A source without a
split `validate` gets one, carved out of train by patient (--config.data.validate_share).

It can be run again. An interrupted job resumes. A finished one of the same settings and tables is recognised. Anything
else in OUT is refused.

A --config file is Python and is executed. Read a config file from someone else before you use it.
"""

import argparse
import shlex
from pathlib import Path

from jaxcxr.options import whole

EXAMPLE = "jaxcxr prepare --config configs/phantom.py --source runs/phantoms --out runs/data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, type=Path, help="config file; its `data` section is used")
    parser.add_argument("--source", required=True, type=Path, help="folder with the raw data, or ORG/NAME of the hub")
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new")
    parser.add_argument("--workers", type=whole(1, 1024), help="processes, 1 to 1,024; default: one a core")
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="run on Apache Beam with these options, e.g. '--runner=FlinkRunner --flink_master=HOST:8081'",
    )


def run(args: argparse.Namespace) -> None:
    """Prepares the data; raises UserError on a user's mistake."""
    from ml_collections import ConfigDict

    from jaxcxr import config as configs
    from jaxcxr.data.prepare import prepare
    from jaxcxr.errors import UserError

    config = configs.load(args.config, args.overrides)
    if not isinstance(config.get("data"), ConfigDict):
        raise UserError(f"{args.config}: has no section `data`; configs/data/ has ready ones")
    try:
        beam = shlex.split(args.beam or "")
    except ValueError as error:
        raise UserError(f"--beam {args.beam}: {error}; quote the options as for a shell") from error
    prepare(config.data, args.source, args.out, workers=args.workers, beam=beam)
