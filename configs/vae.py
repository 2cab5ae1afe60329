"""An autoencoder that is tuned on radiographs, with the terms of latent diffusion's: L1, LPIPS, KL, a discriminator.

    jaxcxr train --config configs/vae.py --workdir runs/vae --config.model.base=BASE --config.data.path=DATA \\
      --config.model.lpips.backbone=vgg16-397923af.pth
    jaxcxr convert runs/vae vae --to diffusers

BASE is a checkpoint with an autoencoder. `configs/vae.py:decoder` leaves its latents as they are, so that a U-Net still
fits; `configs/vae.py:msdm` has the loss of MSDM's small one. docs/adaptation.md has the rest.
"""

import base
from ml_collections import ConfigDict

from jaxcxr.errors import UserError

_LEARNS = {
    "whole": r"(vae|discriminator)\..*",
    "decoder": r"(vae\.(decoder|post_quant_conv)|discriminator)\..*",
    "msdm": r"vae\..*",
}


def get_config(loss: str = "whole") -> ConfigDict:
    """Needs `model.base` and `model.lpips.backbone`, torchvision's file of VGG-16; `loss` is whole, decoder or msdm."""
    if loss not in _LEARNS:
        raise UserError(f"configs/vae.py:{loss}: choose {', '.join(_LEARNS)}")
    config = base.get_config()
    config.method = "autoencoder"
    config.trainable = _LEARNS[loss]
    config.data.size = 0  # that of the prepared images
    config.model.lpips = ConfigDict({"net": "vgg", "backbone": "", "heads": ""})
    config.objective.reduction = "sum"
    config.objective.kl_weight = 1e-6
    config.batch_size = 12
    config.steps = 10_000
    if loss == "msdm":
        config.objective.perceptual = ConfigDict({"features": 1.0, "ssim": 1.0})
        config.optimizer.learning_rate = 1e-4
    else:
        config.objective.error = "l1"
        config.objective.perceptual = ConfigDict({"lpips": 1.0, "adversarial": 0.5})
        config.optimizer.learning_rate = 4.5e-6 * config.batch_size
        config.optimizer.b1, config.optimizer.b2 = 0.5, 0.9
    config.optimizer.weight_decay = 0.0
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config
