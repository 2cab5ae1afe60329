"""Fits another text encoder to a base: a projection of its states, learnt from captions with the base's as teacher.

    jaxcxr train --config configs/projection.py --workdir runs/projection --config.model.base=stable-diffusion-v1-4 \\
      --config.model.text_encoder_base=RadBERT --config.data.path=DATA
    jaxcxr convert runs/projection runs/with-radbert --to diffusers

What is written is a base like any other, with RadBERT in the place of the base's text encoder; tune its U-Net next.
After Chambon et al. 2022 (arXiv 2210.04133), whose projection has a hidden layer: `model.text_encoder_fit=mlp`.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`, `model.text_encoder_base` and `data.path`, of which it reads the prompts alone."""
    config = base.get_config()
    config.method = "projection"
    config.trainable = r"unet\.encoder_hid_proj\..*"
    config.model.text_encoder_fit = "linear"
    config.data.size = 0  # that of the prepared images
    config.batch_size = 64
    config.steps = 5000
    config.ema_decay = 0.999
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 0.0
    return config
