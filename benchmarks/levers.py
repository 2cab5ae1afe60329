"""The levers of memory, one at a time, planned: what a chip takes for a train step under each.

    python benchmarks/levers.py [NAME]

NAME is phantom: the phantoms' step at 64 images on each of four H100s; stable-diffusion-2: its U-Net's at 32 on one;
eight: the same on each of eight, where states can be split; v5e: at 8 on each of eight chips of v5e, whose compiler
tells the host's memory from the device's. Needs XLA's CUDA compiler, or libtpu; compiles for one to ten minutes each,
keeps what it has found in runs/plans, and writes benchmarks/results/levers-DATE.json, in bytes a chip, with the images
a second to expect of all.
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
EIGHT = {
    "none, in bfloat16": (),
    "ema_sharding=fsdp": ("mesh.data=1", "mesh.fsdp=8", "ema_sharding=fsdp"),
    "sharding=fsdp": ("mesh.data=1", "mesh.fsdp=8", "sharding=fsdp"),
    "sharding=fsdp+tensor": ("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2", "sharding=fsdp+tensor"),
}
V5E = {"sharding=fsdp, remat=blocks": (), "the same, ema_memory=host": ("ema_memory=host",)}


def phantom() -> ConfigDict:
    """The phantoms' diffusion, its autoencoder described, as it has no checkpoint here."""
    file = ROOT / "configs" / "phantom.py"
    config = configs.load(
        f"{file}:diffusion", ["--config.batch_size=256", "--config.model.base=", "--config.data.cache=cache"]
    )
    with config.unlocked():
        config.model.vae = configs.load(f"{file}:autoencoder").model.vae
    return config


def scaling(name: str, images: int) -> ConfigDict:
    return configs.load(ROOT / "configs" / "scaling" / f"{name}.py", [f"--config.batch_size={images}"])


def main() -> None:
    sets = {
        "phantom": (phantom(), LEVERS, "h100:4"),
        "stable-diffusion-2": (scaling("sd2", 32), FULL, "h100:1"),
        "eight": (scaling("sd2", 8 * 32), EIGHT, "h100:8"),
        "v5e": (scaling("weak", 8 * 8), V5E, "v5e:2x4"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="phantom", choices=sets)
    name = parser.parse_args().name
    base, levers, hardware = sets[name]
    for lever, values in levers.items():
        config = configs.changed(base, [f"--config.{value}" for value in values])
        (point,) = sweep.sweep([config], targets.parse(hardware), ROOT / "runs" / "plans")
        memory = point.found["memory"]
        row = memory | {"total": sum(memory.values()), "images_per_s": point.estimate.rate if point.fits else None}
        row |= {key: point.found[key] for key in ("alive", "donated", "moved")}
        record.write("levers", tuple(sweep.versions()), {f"{name}: {lever}": row})


if __name__ == "__main__":
    main()
