"""Low-rank adapters (LoRA) of a base that stays as it is: a few megabytes to train, to keep and to give away.

    jaxcxr train --config configs/lora.py --workdir runs/lora --config.model.base=BASE --config.data.path=DATA
    jaxcxr convert runs/lora lora --to lora

BASE is a diffusers folder, or whatever else is a checkpoint. docs/adaptation.md says what can be changed, and why.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`; rank, alpha and rate are those of Pixels Under Pressure's LoRA of Stable Diffusion."""
    config = base.get_config()
    config.trainable = ""  # the adapters alone learn
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.data.size = 0  # that of the prepared images
    config.batch_size = 16
    config.steps = 2000
    config.ema_decay = 0.99
    config.optimizer.learning_rate = 1e-4
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config
