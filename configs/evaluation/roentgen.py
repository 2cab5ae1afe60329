"""How RoentGen was evaluated (Bluethgen & Chambon et al. 2024, arXiv 2211.12737), on 5,000 images of 512² of the test
split: distances of Inception's, a radiograph network's and CLIP's features, MS-SSIM of the four images of a prompt.

    jaxcxr evaluate --config configs/evaluation/roentgen.py --real runs/data:test --generated runs/samples \\
      --weights inception=FILE --weights xrv=FILE --weights clip-b-32=FOLDER --out runs/evaluation

Published: 3.6 by the radiograph network, 54.9 by Inception. The stage `as_published` compares whole sets once, at
n = 5,000 in place of half of that, without floor and interval, and shrinks images for the radiograph network without a
filter, as older torchvision did.
"""

import base
from ml_collections import ConfigDict


def get_config(stage: str = "") -> ConfigDict:
    """`stage` is empty, or `as_published`."""
    published = {"": False, "as_published": True}[stage]
    config = base.get_config()
    config.data.size = 512
    evaluation = config.evaluation
    radiograph = "xrv/roentgen-no-antialias" if published else "xrv/roentgen"
    evaluation.extractors = ("inception/clean-fid", radiograph, "clip-b-32")
    evaluation.metrics = ("fd", "ssim_within")
    evaluation.images = 5000
    evaluation.as_published = published
    return config
