"""A Stable Diffusion pipeline with random weights, tiny unless asked otherwise, written by diffusers itself."""

from pathlib import Path

import pytest

from jaxcxr.data import tokens

REPORTS = [
    "No acute cardiopulmonary process.",
    "Small left pleural effusion.",
    "Moderate right pleural effusion with adjacent atelectasis.",
    "Bilateral pleural effusions, right greater than left.",
]

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write(folder: Path, *, unet=UNET, vae=VAE, text=TEXT, prediction_type: str = "epsilon") -> Path:
    """Saves a random pipeline with diffusers; the test is skipped where torch is not installed."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    size = tokens.train(REPORTS * 3, 600, folder.parent / "tokenizer")
    tokenizer = tokens.load(folder.parent / "tokenizer")
    torch.manual_seed(0)
    words = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**vae),
        unet=diffusers.UNet2DConditionModel(**unet),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**words | text)),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_bert(folder: Path, width: int) -> None:
    """A random BERT of two layers with a tokenizer that knows letters, as transformers saves them."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
