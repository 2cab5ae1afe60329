"""A ControlNet: a U-Net that is frozen draws what a report says where a condition image says, of masks for example.

    jaxcxr train --config configs/controlnet.py --workdir runs/controlnet --config.model.base=BASE \\
      --config.data.path=DATA --config.data.conditions=FOLDER
    jaxcxr sample --checkpoint runs/controlnet --control CONDITION.png --prompt "…" --out runs/controlled

BASE is a model that was trained on such data. FOLDER has a picture ID.png for each record of DATA, in colour or gray,
as large as the images. docs/adaptation.md has the rest.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base` and `data.conditions`; the rate is that of diffusers' script."""
    config = base.get_config()
    config.method = "controlnet"
    config.trainable = r"controlnet\..*"
    config.data.size = 0  # that of the prepared images
    config.batch_size = 32
    config.steps = 5000
    config.optimizer.learning_rate = 5e-6
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config
