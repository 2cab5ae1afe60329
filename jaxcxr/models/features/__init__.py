"""Networks that make a vector of an image, with the parameter names of the libraries that publish their weights."""

import numpy as np

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
"""Of RGB in 0..1."""
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)
