"""A base that has never seen an effusion learns to draw them, in minutes on two CPU cores.

make quickstart
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Tunes the U-Net and the text encoder of `phantom-no-effusion`, a base that comes with the package."""
    config = base.get_config()
    config.model.base = "phantom-no-effusion"
    config.trainable = r"unet\..*|text_encoder\..*"
    config.data.path = "runs/quickstart/data"
    config.data.size = 64
    config.data.tokenizer_vocab = 1024
    config.batch_size = 16
    config.steps = 300
    config.ema_decay = 0.98
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.log_every = 5
    config.eval_every = config.checkpoint_every = 150
    config.sample_every = 0  # the samples are drawn after the training
    config.evaluation.extractors = ()  # a classifier of phantoms says more of so few images
    return config
