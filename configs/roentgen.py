"""RoentGen (Bluethgen & Chambon et al. 2024, arXiv 2211.12737): Stable Diffusion 1.4, U-Net and CLIP learn, 512².

    jaxcxr prepare --config configs/data/roentgen.py --source MIMIC --out runs/data --config.data.tokenizer=CLIP
    jaxcxr plan --config configs/roentgen.py:v5e-16 --target v5e:4x4
    jaxcxr train --config configs/roentgen.py:v5e-16 --workdir runs/roentgen

AdamW at 5e-5, 256 images a step, bfloat16, 60,000 steps, an average. The stage is the hardware that memory and layout
are set for, in Google Cloud's names, which count the cores of v5p: v5e-16 is 4x4 chips, v5p-8 is 2x2x1, v5p-64 is
2x4x4; h100-8 is a node of eight. Without a stage it is one such GPU. The base is a diffusers folder.
FID of the published model: 3.6 by radiograph features, 54.9 by Inception's (n = 5,000).
"""

from pathlib import Path

import base
from ml_collections import ConfigDict

from jaxcxr import config as configs

# What the hardware asks for; the step is the same. A chip of v5e has 16 GB, of v5p 95 GB, an H100 80 GB.
STAGES = {
    "": {"accumulation": 16},
    "v5e-16": {"mesh.fsdp": 16, "sharding": "fsdp", "accumulation": 4},
    "v5p-8": {"accumulation": 4},
    "v5p-64": {},
    "h100-8": {"accumulation": 2},
}


def get_config(stage: str = "") -> ConfigDict:
    """`stage` is v5e-16, v5p-8, v5p-64 or h100-8."""
    config = base.get_config()
    config.data.update(configs.load(Path(__file__).parent / "data" / "roentgen.py").data)
    config.model.base = "runs/stable-diffusion-v1-4"
    config.trainable = r"unet\..*|text_encoder\..*"
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.steps = 60_000
    config.optimizer.learning_rate = 5e-5
    config.update_from_flattened_dict(STAGES[stage])
    return config
