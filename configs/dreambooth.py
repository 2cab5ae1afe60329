"""DreamBooth with prior preservation: a few radiographs of one's own, and class pictures that the base draws.

    jaxcxr train --config configs/dreambooth.py --workdir runs/dreambooth --config.model.base=BASE \
      --config.data.path=DATA

BASE is a checkpoint, DATA a prepared folder of some 5 to 100 images, whose prompts name what is new. The class pictures
are drawn before the first step into `prior.path`. Settings of the published scripts: U-Net alone, 5e-6, 800 steps.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base` and `data.path`."""
    config = base.get_config()
    config.data.size = 0  # that of the prepared images
    config.batch_size = 8
    config.steps = 800
    config.ema_decay = 0.0
    config.optimizer.learning_rate = 5e-6
    config.optimizer.weight_decay = 0.01
    config.objective.caption_dropout = 0.0
    config.prior.path = "runs/prior"
    config.prior.prompt = "Frontal chest radiograph."
    config.eval_every, config.sample_every, config.checkpoint_every = 0, 200, 200
    return config
