"""Adapters with which a model of one's own draws in 4 to 8 steps, without guidance: LCM-LoRA (arXiv 2311.05556).

    jaxcxr train --config configs/lcm_lora.py --workdir runs/lcm --config.model.base=BASE --config.data.path=DATA
    jaxcxr sample --checkpoint BASE --adapter runs/lcm --sampler lcm --steps 4 --guidance 1 --prompt "…" --out runs/few

BASE is a model that was trained on such data already: it is its own teacher. docs/adaptation.md has the rest.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`; rank, rate and length are the paper's, scales of guidance those that radiographs want."""
    config = base.get_config()
    config.method = "consistency"
    config.trainable = ""  # the adapters alone learn
    config.lora.rank = 64
    attention = r"attentions\..*\.(to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2)"
    config.lora.targets = rf"unet\..*\.({attention}|(down|up)samplers\.0\.conv|resnets\.\d+\..*)"
    config.objective.error = "pseudo_huber"
    config.objective.caption_dropout = 0.0
    config.data.size = 0  # that of the prepared images
    config.batch_size = 16
    config.steps = 1000
    config.ema_decay = 0.0  # the student teaches itself: no average
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.samples.sampler = "lcm"
    config.samples.steps = 4
    config.samples.guidance = 1.0
    config.eval_every = config.sample_every = config.checkpoint_every = 250
    return config
