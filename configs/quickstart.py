"""`configs/phantom.py` in minutes on two CPU cores: the road from end to end, not a model to rely on.

make quickstart
"""

import phantom
from ml_collections import ConfigDict


def get_config(stage: str = "diffusion") -> ConfigDict:
    """`stage` is autoencoder or diffusion."""
    config = phantom.get_config(stage)
    config.batch_size = {"autoencoder": 8, "diffusion": 16}[stage]
    config.steps = {"autoencoder": 90, "diffusion": 100}[stage]
    config.optimizer.warmup_steps = 20
    config.ema_decay = 0.95
    config.log_every = 5
    config.checkpoint_every = config.eval_every = config.steps
    # The samples are drawn by the next step of the road; compiling a sampler here would cost half a minute.
    config.sample_every = {"autoencoder": config.steps, "diffusion": 0}[stage]
    return config
