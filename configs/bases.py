"""Three bases of drawn radiographs at 64² that share an autoencoder, for studies of adaptation.

    launch/bases.sh runs/bases

They differ from `configs/phantom.py` in finer latents, a wider U-Net and longer trainings. docs/phantom.md has what
they are for, and what they draw.
"""

import phantom
from ml_collections import ConfigDict

from jaxcxr.errors import UserError

BASES = ("phantom-no-effusion", "phantom", "phantom-unnamed")
VAE = phantom.VAE | {"latent_channels": 8, "mid_block_add_attention": False}
UNET = phantom.UNET | {"in_channels": 8, "out_channels": 8, "block_out_channels": (48, 96)}
_LATER = {
    "findings": ("phantom-no-effusion", 4500, 1e-3),
    "further": ("findings", 6000, 1e-3),
    "phantom": ("further", 2500, 5e-4),
}
"""Stages that begin with another's U-Net and text encoder: whose, their steps, and their rate."""
UNNAMED = ("Frontal chest radiograph, {view} view.",)


def get_config(stage: str = "phantom") -> ConfigDict:
    """`stage` is autoencoder, or details, which trains it on for small things; or phantom-no-effusion; or
    findings, further, phantom, each from the one before; or phantom-unnamed.
    """
    if stage in _AUTOENCODERS:
        return _AUTOENCODERS[stage]()
    if stage not in (*BASES, *_LATER):
        raise UserError(f"configs/bases.py:{stage}: choose {', '.join([*_AUTOENCODERS, *BASES, *_LATER])}")
    config = phantom.get_config("diffusion")
    config.data.path = f"runs/bases/data-{'phantom' if stage in _LATER else stage}"
    config.data.tokenizer = "runs/bases/data/tokenizer"
    config.model.base = "runs/bases/white"
    config.model.unet = ConfigDict(UNET)
    config.model.measure_scaling_factor = False  # `jaxcxr convert --whiten` has measured it
    config.steps = 3000
    if stage in _LATER:
        before, config.steps, config.optimizer.learning_rate = _LATER[stage]
        config.model.base = f"runs/bases/{before}"
        for inherited in ("unet", "text_encoder", "scheduler"):
            config.model[inherited] = ConfigDict()
    elif stage == "phantom-unnamed":
        config.data.prompts = UNNAMED
        config.steps = 1200
    config.ema_decay = 0.998
    config.data.rebalance = 1.0
    config.samples.prompts = (
        "No acute cardiopulmonary process.",
        "Large left pleural effusion.",
        "Severe cardiomegaly.",
        "Large right pneumothorax.",
        "Left upper zone consolidation.",
        "Right chest wall pacemaker.",
    )
    config.samples.per_prompt = 4
    config.eval_every = config.sample_every = config.checkpoint_every = 1000
    return config


def _autoencoder() -> ConfigDict:
    config = phantom.get_config("autoencoder")
    config.data.path = "runs/bases/data"
    config.model.vae = ConfigDict(VAE)
    config.steps = 3000
    config.ema_decay = 0.995
    config.eval_every = config.sample_every = config.checkpoint_every = 600
    return config


def _details() -> ConfigDict:
    config = _autoencoder()
    config.model.base = "runs/bases/autoencoder"
    config.model.vae = ConfigDict()
    config.steps = 3400
    config.optimizer.learning_rate = 1e-3
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config


_AUTOENCODERS = {"autoencoder": _autoencoder, "details": _details}
