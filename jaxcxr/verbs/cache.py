"""Encode all images, and if you like all prompts, once, so that training need not.

Writes the moments of the autoencoder of `model.base` for every record of `data.path`, with `--text` the states of its
text encoder for every prompt too. A training with the same config and `--config.data.cache=OUT` reads them in place of
images and prompts: the same loss, to the rounding of the dtype, without the frozen networks' work. What this config's
training would refuse, since an encoder learns, is refused before anything is encoded. Run it again to resume where it
stopped. Several processes, started as for `jaxcxr train`, share the work.

A --config file is Python and is executed. Read a config file from someone else before you use it.
"""

import argparse

from jaxcxr import buckets

EXAMPLE = "jaxcxr cache --config configs/finetune.py --out runs/cache --config.model.base=stable-diffusion-v1-4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--config", required=True, help="config file of the training, FILE.py or FILE.py:STAGE")
    parser.add_argument(
        "--out", required=True, type=buckets.output, help="folder to write, new or begun; may be gs://…"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="default: %(default)s")
    parser.add_argument("--text", action="store_true", help="the text encoder's states too; for U-Nets alone to learn")


def run(args: argparse.Namespace) -> None:
    """Caches; raises UserError on a user's mistake."""
    from jaxcxr import config as configs
    from jaxcxr.cache import cache
    from jaxcxr.data.stage import KEYS
    from jaxcxr.parallel import processes

    config = configs.load(args.config, args.overrides, buckets=KEYS)
    with processes.joined():
        cache(config, args.out, args.dtype, text=args.text)
