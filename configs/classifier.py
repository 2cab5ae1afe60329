"""A classifier of the labels of radiographs, several to an image.

    jaxcxr train --config configs/classifier.py --workdir runs/classifier --config.data.path=DATA \\
      --config.model.classifier.pretrained=densenet121-a639ec97.pth

DATA is a prepared folder whose records have labels. docs/classifier.md has the rest.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """DenseNet-121 of all labels that the data have; CheXNet's network (Rajpurkar et al. 2017, arXiv 1711.05225)."""
    config = base.get_config()
    config.method = "classifier"
    config.trainable = r"classifier\..*"
    config.data.size = 0  # that of the prepared images
    config.model.classifier = ConfigDict(
        {
            "architecture": "densenet121",  # or resnet18, resnet50; or small, for CPUs
            "classes": (),  # labels, in the order of the answers; empty: all of the data
            "image_size": 224,  # that images are resized to; 0: the data's
            "pretrained": "",  # torchvision's file of ImageNet's weights; empty: from scratch, of one channel
        }
    )
    config.augment.rotation = 10.0
    config.augment.translation = 0.05
    config.batch_size = 32
    config.steps = 10_000
    config.ema_decay = 0.999
    config.optimizer.schedule = "cosine"
    config.eval_every = config.checkpoint_every = config.sample_every = 500
    config.eval_batches = 64
    config.stopping.metric = "validation_auroc"
    config.stopping.patience = 6
    return config
