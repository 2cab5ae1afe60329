"""Three bases of drawn radiographs at 64² that share an autoencoder, for studies of adaptation.

    launch/bases.sh runs/bases

docs/phantom.md has what they are for, and what they draw.
"""

import base
from ml_collections import ConfigDict

from jaxcxr.errors import UserError

BASES = ("phantom-unnamed", "phantom", "phantom-no-effusion")

VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 8,  # with fewer, tubes and lines are lost
    "sample_size": 64,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "mid_block_add_attention": False,
}
UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (48, 96),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 96,
    "attention_head_dim": 4,  # the number of heads, as in Stable Diffusion 1
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
TEXT_ENCODER = {
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 96,
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


UNNAMED = ("Frontal chest radiograph, {view} view.",)


def get_config(stage: str = "phantom") -> ConfigDict:
    """`stage` is autoencoder, or the base to train: phantom-unnamed, phantom or phantom-no-effusion."""
    config = _autoencoder() if stage == "autoencoder" else _base(stage)
    config.data.size = 64
    config.data.views = ("PA", "AP")
    if stage == "phantom-unnamed":
        config.data.prompts = UNNAMED
    config.data.tokenizer_vocab = 1024
    config.optimizer.schedule = "cosine"
    return config


def _autoencoder() -> ConfigDict:
    config = base.get_config()
    config.objective.name = "autoencoder"
    config.objective.error = "l1"
    config.objective.kl_weight = 1e-8
    config.model.vae = ConfigDict(VAE)
    config.trainable = r"vae\..*"
    config.batch_size = 16
    config.steps = 4500
    config.ema_decay = 0.995
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.0
    config.eval_every = config.sample_every = config.checkpoint_every = 600
    return config


def _base(name: str) -> ConfigDict:
    if name not in BASES:
        raise UserError(f"configs/bases.py:{name}: choose autoencoder, {', '.join(BASES)}")
    config = base.get_config()
    config.model.unet = ConfigDict(UNET)
    config.model.text_encoder = ConfigDict(TEXT_ENCODER)
    config.model.scheduler = ConfigDict(SCHEDULER)
    config.model.measure_scaling_factor = True
    config.trainable = r"unet\..*|text_encoder\..*"
    config.batch_size = 32
    config.steps = 1500 if name == "phantom-unnamed" else 4000
    config.ema_decay = 0.998
    config.data.rebalance = 1.0
    config.optimizer.learning_rate = 1e-3
    config.samples.prompts = (
        "No acute cardiopulmonary process.",
        "Large left pleural effusion.",
        "Severe cardiomegaly.",
        "Large right pneumothorax.",
        "Left upper zone consolidation.",
        "Right chest wall pacemaker.",
    )
    config.samples.per_prompt = 4
    config.samples.steps = 25
    config.samples.guidance = 3.0
    config.eval_every = config.sample_every = config.checkpoint_every = 1000
    return config
