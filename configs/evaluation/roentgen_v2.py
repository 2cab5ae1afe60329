"""The order of RoentGen-v2's study (2025): a classifier learns from generated images first, then from real ones.

    jaxcxr study --config configs/evaluation/roentgen_v2.py --real runs/data --synthetic runs/drawn --out runs/study

There, 565,000 generated images first and real ones then gave 6.5 % more than real images alone, both at once 2.7 %, and
an underdiagnosis gap 19.3 % smaller, over 137,000 images of five sites: give the other sites with `--test FOLDER`.
Those are figures of its abstract. Its network and rates were not found; they are those of `configs/classifier.py`.
"""

import classifier
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Set `model.classifier.pretrained` to torchvision's file to start from ImageNet."""
    return classifier.get_config()
