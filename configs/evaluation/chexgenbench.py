"""The fidelity and diversity of CheXGenBench: distances, precision, recall, density and coverage of Inception's and
RAD-DINO's features, k = 5, on the images of its test prompts.

    jaxcxr evaluate --config configs/evaluation/chexgenbench.py --real runs/data:test --generated runs/samples \\
      --weights inception=FILE --weights rad-dino=FOLDER --out runs/evaluation

Published, by RAD-DINO: 54.2 for Sana, 118.9 for Stable Diffusion 1.5. The stage `as_published` does as its scripts do:
whole sets once, and images shrunk to 299² with eight bits before RAD-DINO enlarges them to 518². docs/evaluation.md
tells what else its scripts do that is not done here.
"""

import base
from ml_collections import ConfigDict


def get_config(stage: str = "") -> ConfigDict:
    """`stage` is empty, or `as_published`."""
    published = {"": False, "as_published": True}[stage]
    config = base.get_config()
    config.data.size = 512
    evaluation = config.evaluation
    evaluation.extractors = ("inception/clean-fid", "rad-dino/rad-dino-299" if published else "rad-dino")
    evaluation.metrics = ("fd", "kid", "prdc")
    evaluation.as_published = published
    return config
