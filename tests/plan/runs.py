"""Configs to plan that compile in seconds."""

from ml_collections import ConfigDict

from jaxcxr import config as configs
from tests.training.runs import ROOT

VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
}
UNET = {
    "block_out_channels": [16],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
}


def autoencoder(**changes) -> ConfigDict:
    """With no data and no checkpoint at hand."""
    config = _base(VAE)
    config.method, config.trainable = "autoencoder", r"vae\..*"
    config.update_from_flattened_dict(changes)
    return config.lock()


def diffusion(**changes) -> ConfigDict:
    """With no data and no checkpoint at hand."""
    config = _base(VAE)
    config.model.unet, config.model.text_encoder = ConfigDict(UNET), ConfigDict(TEXT)
    config.model.scheduler = ConfigDict({"beta_schedule": "scaled_linear"})
    config.update_from_flattened_dict(changes)
    return config.lock()


def _base(vae: dict) -> ConfigDict:
    config = ConfigDict(configs.load(ROOT / "configs" / "base.py").to_dict())
    config.model.vae = ConfigDict(vae)
    config.data.path, config.data.size, config.batch_size, config.data.tokenizer_vocab = "nowhere", 16, 8, 600
    return config
