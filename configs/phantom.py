"""Everything from scratch on phantoms at 64², at a size that learns what it is asked for.

    launch/phantom.sh configs/phantom.py runs/phantom 2500 200

Autoencoder, U-Net and text encoder are learnt from scratch. docs/phantom.md has what came of it:
99 % of the samples show the effusion they were asked for.
"""

import base
from ml_collections import ConfigDict

VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "sample_size": 64,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 96),
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
# Stable Diffusion's betas; v-prediction, whose loss weighs the noisy steps that decide sides and sizes.
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def get_config(stage: str = "diffusion") -> ConfigDict:
    """`stage` is autoencoder or diffusion; the second's `model.base` is the first's workdir."""
    config = {"autoencoder": _autoencoder, "diffusion": _diffusion}[stage]()
    config.data.path = "runs/phantom/data"
    config.data.size = 64
    config.data.views = ("PA", "AP")
    config.data.tokenizer_vocab = 1024
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    return config


def _autoencoder() -> ConfigDict:
    config = base.get_config()
    config.method = "autoencoder"
    config.objective.error = "l1"
    config.objective.kl_weight = 1e-8  # at 1e-6 the noise of two of the four channels comes near their signal
    config.model.vae = ConfigDict(VAE)
    config.trainable = r"vae\..*"
    config.batch_size = 16
    config.steps = 500
    config.ema_decay = 0.99
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.0
    config.eval_every = config.sample_every = config.checkpoint_every = 250
    return config


def _diffusion() -> ConfigDict:
    config = base.get_config()
    config.model.base = "runs/phantom/autoencoder"
    config.model.unet = ConfigDict(UNET)
    config.model.text_encoder = ConfigDict(TEXT_ENCODER)
    config.model.scheduler = ConfigDict(SCHEDULER)
    config.model.measure_scaling_factor = True
    config.trainable = r"unet\..*|text_encoder\..*"
    config.batch_size = 32
    config.steps = 1000
    config.ema_decay = 0.995
    config.optimizer.learning_rate = 1e-3
    config.samples.prompts = (
        "No pleural effusion.",
        "Large left pleural effusion.",
        "Large right pleural effusion.",
        "Large bilateral pleural effusions.",
    )
    config.samples.per_prompt = 8
    config.samples.steps = 25
    config.samples.guidance = 3.0
    config.eval_every = config.sample_every = config.checkpoint_every = 500
    return config
