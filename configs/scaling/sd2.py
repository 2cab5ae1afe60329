"""Stable Diffusion 2 on cached moments and states, U-Net alone, as MLPerf Training runs it: what to compare speed by.

    jaxcxr plan --config configs/scaling/sd2.py --target v5p:2x2x2 --scaling --coarse --out runs/scaling
    jaxcxr train --config configs/scaling/sd2.py --workdir runs/sd2

256 images a step on eight chips of v5p, 32 a chip. Public records at that: 86.6 images/s a chip (MLPerf 4.1, v5p x 8),
138 an H100 (x 8, 4.1); they keep no average, this does. Another number of chips wants another batch: `weak.py` and
`strong.py` beside this one have it.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `data.cache`, of images and prompts, and `model.base`."""
    config = base.get_config()
    config.data.cache = "runs/cache"
    config.model.base = "runs/stable-diffusion-2-base"
    config.trainable = r"unet\..*"
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.optimizer.learning_rate = 1.25e-7 * 256
    config.optimizer.warmup_steps = 1000
    return config
