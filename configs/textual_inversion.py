"""Learns a word for a finding: eight vectors of the text encoder's; every network stays as it is.

    jaxcxr prepare --config configs/textual_inversion.py --source MIMIC --out runs/effusions
    jaxcxr train --config configs/textual_inversion.py --workdir runs/word --config.model.base=stable-diffusion-v1-4 \\
      --config.data.path=runs/effusions
    jaxcxr sample --checkpoint runs/word --prompt "PA chest radiograph with <effusion>." --out runs/samples

After Gal et al. 2022 (arXiv 2208.01618), for radiographs de Wilde et al. 2023 (arXiv 2303.13430). Images are not
flipped, which would turn left into right. For another finding change word, prompts and labels together.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `model.base`, and `data.path` prepared with this config."""
    config = base.get_config()
    config.trainable = ""
    config.textual_inversion.tokens = (("<effusion>", 8),)
    config.data.labels = ("Pleural Effusion",)
    config.data.prompts = ("{view} chest radiograph with <effusion>.",)
    config.samples.prompts = ("PA chest radiograph with <effusion>.",)
    config.objective.caption_dropout = 0.0  # a prompt that is left out teaches the word nothing
    config.batch_size = 4
    config.steps = 3000
    config.ema_decay = 0.0
    config.optimizer.learning_rate = 2e-3
    return config
