"""The fidelity and diversity of CheXGenBench: distances, precision, recall, density and coverage of Inception's and
RAD-DINO's features, k = 5, on the images of its test prompts.

    jaxcxr evaluate --config configs/evaluation/chexgenbench.py --real runs/data:test --generated runs/samples \\
      --weights inception=FILE --weights rad-dino=FOLDER --out runs/evaluation

Published, by RAD-DINO: 54.2 for Sana, 118.9 for Stable Diffusion 1.5. The stage `as_published` does as its scripts do:
whole sets once, and images shrunk to 299² with eight bits before RAD-DINO enlarges them to 518². docs/evaluation.md
tells what else its scripts do that is not done here. The stage `classifier` is its study of augmentation, for `jaxcxr
study`: ResNet-50 at 224², 1e-4, uncertain labels as negative.
"""

import base
import classifier
from ml_collections import ConfigDict


def get_config(stage: str = "") -> ConfigDict:
    """`stage` is empty, `as_published` or `classifier`."""
    if stage == "classifier":
        return _classifier()
    published = {"": False, "as_published": True}[stage]
    config = base.get_config()
    config.data.size = 512
    evaluation = config.evaluation
    evaluation.extractors = ("inception/clean-fid", "rad-dino/rad-dino-299" if published else "rad-dino")
    evaluation.metrics = ("fd", "kid", "prdc")
    evaluation.as_published = published
    return config


def _classifier() -> ConfigDict:
    config = classifier.get_config()
    config.model.classifier.architecture = "resnet50"
    config.optimizer.weight_decay = 1e-5
    return config
