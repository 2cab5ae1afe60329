"""The augmentation study of ChexGen: DenseNet-121 from ImageNet at 256² on 45,000 radiographs of MIMIC-CXR.

    jaxcxr study --config configs/evaluation/chexgen.py --real runs/data --synthetic runs/drawn-1 runs/drawn-2 \\
      --out runs/study --config.model.classifier.pretrained=densenet121-a639ec97.pth

Each folder of --synthetic has an image for each real one, drawn with a seed of its own. 15 epochs in batches of 128, a
cosine, three seeds. Published macro AUROC of 3,500 test images: 78.02 from real images, 79.62, 80.28, 80.59, 80.51 and
80.78 with one to five generated ones beside each. There the steps grow with the images and nothing controls for that;
here the arms of equal steps are beside. Its code takes the best epoch of the test set, and SGD at 1e-3; here it is the
last one, and AdamW trains.
"""

import classifier
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Wants `model.classifier.pretrained`, torchvision's file."""
    config = classifier.get_config()
    config.model.classifier.image_size = 256
    config.batch_size = 128
    config.epochs = 15.0
    config.ema_decay = 0.0
    return config
