"""A small run of each way to adapt a base, for what must hold of all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from jaxcxr import config as configs
from jaxcxr.data.loader import as_text, open_split
from tests import pipelines
from tests.training import runs

ATTENTION = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)|unet\..*\.conv1|text_encoder\..*\.(q_proj|out_proj)"
_UNET = {
    "block_out_channels": [32],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
_VAE = {
    "block_out_channels": [16],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "mid_block_add_attention": False,
}
ALEX = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
LARGER = 32
"""Pixels a side, for networks that a picture of `runs.SIZE` is too small for."""
_WORD = "{view} radiograph with <effusion>. {report}"


def write_source(folder: Path) -> Path:
    """A folder with a base, a BERT that is no part of it, and weights of the training images."""
    text = {**pipelines.TEXT, "num_hidden_layers": 1}
    pipelines.write(folder / "base", unet={**pipelines.UNET, **_UNET}, vae={**pipelines.VAE, **_VAE}, text=text)
    pipelines.write_bert(folder / "bert", 24)
    ids = [as_text(record["id"]) for record in open_split(runs.data(), "train")]
    rows = [f"{each},{number % 5 / 4}" for number, each in enumerate(ids)]
    (folder / "conditions").mkdir()
    for number, each in enumerate(ids):
        pixels = np.random.default_rng(number).integers(0, 256, (runs.SIZE, runs.SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "conditions" / f"{each}.png")
    write_alex(folder / "alex.safetensors")
    (folder / "weights.csv").write_text("\n".join(["id,weight", *rows]) + "\n")
    folders = {"data": str(runs.data()), "larger": str(runs.data(LARGER)), "words": str(runs.worded((_WORD,)))}
    (folder / "folders.json").write_text(json.dumps(folders))
    return folder


def write_alex(file: Path) -> None:
    """Random weights with the names and shapes of torchvision's AlexNet, as far as LPIPS reads it."""
    draw = np.random.default_rng(0)
    tensors = {}
    for place, shape in ALEX.items():
        spread = np.sqrt(2 / np.prod(shape[1:]))
        tensors[f"features.{place}.weight"] = draw.normal(0, spread, shape).astype(np.float32)
        tensors[f"features.{place}.bias"] = draw.normal(0, 0.1, shape[0]).astype(np.float32)
    save_file(tensors, file)


def config_of(name: str, source: Path, prior: Path | None = None) -> ConfigDict:
    """The run of this name on a source; `prior` is where class pictures are to be drawn."""
    config = configs.load(runs.ROOT / "configs" / "base.py")
    folders = json.loads((source / "folders.json").read_text())
    changes = {
        "model.base": str(source / "base"),
        "data.path": folders["data"],
        "data.size": runs.SIZE,
        "batch_size": 8,
        "steps": 6,
        "log_every": 1,
        "eval_every": 0,
        "sample_every": 0,
        "checkpoint_every": 3,
        "ema_decay": 0.5,
        "samples.steps": 2,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
        # Adam's first updates are of the gradient's sign, which rounding turns where it is next to nothing.
        "optimizer.eps": 1e-3,
        **METHODS[name](source, folders),
    }
    if name == "dreambooth":
        changes["prior.path"] = str(prior)
    config.update_from_flattened_dict(changes)
    return config


METHODS: dict[str, Callable[[Path, dict[str, str]], dict[str, Any]]] = {
    "lora": lambda source, folders: {"trainable": "", "lora.rank": 4, "lora.targets": ATTENTION},
    "dora": lambda source, folders: {"trainable": "", "lora.rank": 4, "lora.targets": ATTENTION, "lora.dora": ".*"},
    "textual_inversion": lambda source, folders: {
        "trainable": "",
        "textual_inversion.tokens": (("<effusion>", 3),),
        "textual_inversion.max_norm": 0.5,
        "data.path": folders["words"],
        "data.prompts": (_WORD,),
    },
    "dreambooth": lambda source, folders: {"prior.prompt": "Frontal chest radiograph.", "prior.count": 6},
    "weights": lambda source, folders: {
        "data.weights": str(source / "weights.csv"),
        "trainable": r"unet\..*|text_encoder\..*",
        "optimizer.rates": ((r"text_encoder\..*", 0.1),),
    },
    # Of squares: the gradient of pseudo_huber turns where a difference is next to nothing, as at the start.
    "consistency": lambda source, folders: {"method": "consistency", "trainable": "", "lora.rank": 4},
    "controlnet": lambda source, folders: {
        "method": "controlnet",
        "trainable": r"controlnet\..*",
        "data.conditions": str(source / "conditions"),
    },
    "inpainting": lambda source, folders: {"method": "inpainting"},
    "autoencoder": lambda source, folders: {
        "method": "autoencoder",
        "trainable": r"(vae|discriminator)\..*",
        "data.path": folders["larger"],
        "data.size": LARGER,
        "model.discriminator": ConfigDict({"width": 8}),
        "model.lpips": ConfigDict({"net": "alex", "backbone": str(source / "alex.safetensors")}),
        "objective.perceptual": ConfigDict({"ssim": 0.5, "features": 0.1, "adversarial": 0.5}),
    },
    "projection": lambda source, folders: {
        "method": "projection",
        "trainable": r"unet\.encoder_hid_proj\..*",
        "model.text_encoder_base": str(source / "bert"),
        "model.text_encoder_fit": "mlp",
    },
    "cross_attention": lambda source, folders: {
        "trainable": r"unet\..*\.attn2\..*",
        "model.text_encoder_base": str(source / "bert"),
        "model.text_encoder_fit": "cross_attention",
    },
}
