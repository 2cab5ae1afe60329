"""`configs/phantom.py` in minutes on two CPU cores: the road from end to end, not a model to judge by.

make quickstart
"""

import phantom
from ml_collections import ConfigDict


def get_config(stage: str = "diffusion") -> ConfigDict:
    """`stage` is autoencoder or diffusion."""
    config = phantom.get_config(stage)
    config.batch_size = 16
    config.steps = {"autoencoder": 150, "diffusion": 250}[stage]
    config.optimizer.warmup_steps = 20
    config.ema_decay = 0.97
    config.log_every = 5
    config.checkpoint_every = config.eval_every = config.sample_every = 125
    config.samples.per_prompt = 4
    return config
