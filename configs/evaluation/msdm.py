"""The numbers of MSDM (Chaichuk et al. 2025, arXiv 2505.05573): Fréchet distance, precision and recall by Inception's
features, of images of 256².

    jaxcxr evaluate --config configs/evaluation/msdm.py --real runs/data:test --generated runs/samples \\
      --weights inception=FILE --out runs/evaluation

The stage `as_published` compares whole sets once, without floor and interval.
"""

import base
from ml_collections import ConfigDict


def get_config(stage: str = "") -> ConfigDict:
    """`stage` is empty, or `as_published`."""
    config = base.get_config()
    config.data.size = 256
    config.evaluation.extractors = ("inception",)
    config.evaluation.metrics = ("fd", "prdc")
    config.evaluation.as_published = {"": False, "as_published": True}[stage]
    return config
