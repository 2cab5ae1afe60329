"""A U-Net that paints what a mask leaves out, under a report and what lies around: Stable Diffusion's inpainting model.

    jaxcxr train --config configs/inpainting.py --workdir runs/inpainting --config.model.base=BASE \\
      --config.data.path=DATA
    jaxcxr sample --checkpoint runs/inpainting --image IMAGE --mask MASK --prompt "…" --out runs/painted

BASE is a text-to-image model, whose first convolution gets channels for the mask and the masked image, of zeros; or an
inpainting model. docs/adaptation.md has the rest.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`."""
    config = base.get_config()
    config.method = "inpainting"
    config.data.size = 0  # that of the prepared images
    config.batch_size = 32
    config.steps = 5000
    config.optimizer.learning_rate = 1e-5
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config
