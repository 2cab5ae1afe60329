"""Real chest X-rays at 128², all from scratch: an autoencoder, then U-Net and text encoder on its latents.

    jaxcxr prepare --config configs/cxr_small.py --source DIR --out runs/cxr/data
    jaxcxr train --config configs/cxr_small.py:autoencoder --workdir runs/cxr/autoencoder
    jaxcxr train --config configs/cxr_small.py:diffusion --workdir runs/cxr/diffusion

DIR is an image folder with `metadata.jsonl` or a MIMIC-CXR-JPG tree, of a thousand images or more. docs/cxr_small.md
shows how far it came in less than three hours on two CPU cores.
"""

import base
import phantom
from ml_collections import ConfigDict

VAE = phantom.VAE | {
    "sample_size": 128,
    "block_out_channels": (8, 16, 32),
    "norm_num_groups": 4,
}
UNET = phantom.UNET | {
    "sample_size": 32,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def get_config(stage: str = "diffusion") -> ConfigDict:
    """`stage` is autoencoder or diffusion; the second's `model.base` is the first's workdir."""
    config = phantom.get_config(stage)
    config.data = base.get_config().data
    config.data.path = "runs/cxr/data"
    config.data.size = 128
    config.data.views = ()
    config.data.tokenizer_vocab = 2048
    if stage == "autoencoder":
        config.model.vae = ConfigDict(VAE)
        config.objective.perceptual = ConfigDict({"ssim": 1.0})  # docs/adaptation.md has what it is worth
        config.batch_size = 8
        config.steps = 1000
        config.checkpoint_every = config.eval_every = config.sample_every = 200
    else:
        config.model.base = "runs/cxr/autoencoder"
        config.model.unet = ConfigDict(UNET)
        config.batch_size = 16
        config.steps = 3200
        config.optimizer.learning_rate = 5e-4
        config.samples.prompts = (
            "Frontal chest radiograph, PA view, 59 year old female. No acute cardiopulmonary abnormality.",
            "Frontal chest radiograph, PA view, 44 year old male. No acute cardiopulmonary abnormality.",
            "Frontal chest radiograph, AP view, 61 year old male. Effusion.",
            "Frontal chest radiograph, PA view, 63 year old female. Cardiomegaly.",
        )
        config.samples.guidance = 1.0
        config.checkpoint_every = config.eval_every = config.sample_every = 300
    return config
