"""Tunes a Stable Diffusion checkpoint on reports and images at 512², the way RoentGen did.

    jaxcxr train --config configs/finetune.py --workdir runs/tuned --config.model.base=DIFFUSERS_FOLDER

Settings of Bluethgen et al. 2024 (arXiv 2211.12737): PA views, AdamW at 5e-5, batch 256, bfloat16, U-Net and
text encoder both learning. Use `--config.batch_size` to fit what memory there is.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`, a diffusers folder or an Orbax one."""
    config = base.get_config()
    config.data.views = ("PA",)
    config.trainable = r"unet\..*|text_encoder\..*"
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.steps = 12_500
    config.optimizer.learning_rate = 5e-5
    return config
