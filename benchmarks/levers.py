"""The levers of memory, one at a time: what each of four H100s takes for the phantoms' step at 64 images a chip, or one
H100 for that of Stable Diffusion 2's U-Net at 32.

    python benchmarks/levers.py [phantom | stable-diffusion-2]

Needs XLA's CUDA compiler; compiles for two minutes each, or ten, keeps what it has found in runs/plans, and writes
benchmarks/results/levers-DATE.json, in bytes a chip, with the images a second to expect of all.
"""

import argparse
from pathlib import Path

import record
from ml_collections import ConfigDict

from jaxcxr import platforms

platforms.only_those_here()

from jaxcxr import config as configs  # noqa: E402
from jaxcxr.plan import sweep, targets  # noqa: E402

ROOT = Path(__file__).parents[1]
SPLIT = ("mesh.data=1", "mesh.fsdp=4")
LEVERS = {
    "none, on cached moments": (),
    "dtype=bfloat16": ("dtype=bfloat16",),
    "optimizer.mu_dtype=bfloat16": ("optimizer.mu_dtype=bfloat16",),
    "optimizer.name=adafactor": ("optimizer.name=adafactor",),
    "remat=attention": ("remat=attention",),
    "remat=blocks": ("remat=blocks",),
    "accumulation=4": ("accumulation=4",),
    "ema_sharding=fsdp": (*SPLIT, "ema_sharding=fsdp"),
    "ema_memory=host": ("ema_memory=host",),
    "sharding=fsdp": (*SPLIT, "sharding=fsdp"),
    "sharding=fsdp+tensor": ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2", "sharding=fsdp+tensor"),
    "data.cache, of a text encoder that does not learn too": (r"trainable=unet\..*",),
    "all": (*SPLIT, "sharding=fsdp", "dtype=bfloat16", "optimizer.mu_dtype=bfloat16", "remat=blocks", "accumulation=4"),
    "none, on images": ("data.cache=",),
}
# On one chip nothing is split. At this size all train in bfloat16, so the others are measured from there.
FULL = {
    "none, in bfloat16": (),
    "dtype=float32": ("dtype=float32",),
    "optimizer.mu_dtype=bfloat16": ("optimizer.mu_dtype=bfloat16",),
    "remat=attention": ("remat=attention",),
    "remat=blocks": ("remat=blocks",),
    "accumulation=4": ("accumulation=4",),
    "all": ("optimizer.mu_dtype=bfloat16", "remat=blocks", "accumulation=4"),
}


def phantom() -> ConfigDict:
    """The phantoms' diffusion, its autoencoder described, as it has no checkpoint here."""
    file = ROOT / "configs" / "phantom.py"
    config = configs.load(
        f"{file}:diffusion", ["--config.batch_size=256", "--config.model.base=", "--config.data.cache=cache"]
    )
    with config.unlocked():
        config.model.vae = configs.load(f"{file}:autoencoder").model.vae
    return config


def full() -> ConfigDict:
    return configs.load(ROOT / "configs" / "scaling" / "sd2.py", ["--config.batch_size=32"])


def main() -> None:
    sets = {"phantom": (phantom, LEVERS, "h100:4"), "stable-diffusion-2": (full, FULL, "h100:1")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="phantom", choices=sets)
    name = parser.parse_args().name
    base, levers, hardware = sets[name]
    for lever, values in levers.items():
        config = configs.changed(base(), [f"--config.{value}" for value in values])
        (point,) = sweep.sweep([config], targets.parse(hardware), ROOT / "runs" / "plans")
        memory = point.found["memory"]
        row = memory | {"total": sum(memory.values()), "images_per_s": point.estimate.rate if point.fits else None}
        record.write("levers", tuple(sweep.versions()), {f"{name}: {lever}": row})


if __name__ == "__main__":
    main()
