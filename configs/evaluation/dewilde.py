"""The augmentation study of de Wilde et al. 2023 (arXiv 2303.13430): ResNet-18 at 196² on 200 radiographs.

    jaxcxr study --config configs/evaluation/dewilde.py --real runs/data --synthetic runs/drawn --out runs/study

The data have 200 images for each of training, validation and test; --synthetic is of 2,000. Batches of 32, 1e-4, 6,250
steps; there the best by validation AUROC, here the last. Published AUC: 0.780 from real images, 0.803 with the
generated ones beside them, 0.766 from these alone. Images are turned, moved and made lighter or darker, as there; none
is mirrored here.
"""

import classifier
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Set `model.classifier.pretrained` to torchvision's file to start from ImageNet."""
    config = classifier.get_config()
    config.model.classifier.architecture = "resnet18"
    config.model.classifier.image_size = 196
    config.augment.brightness = 0.1
    config.steps = 6250
    return config
