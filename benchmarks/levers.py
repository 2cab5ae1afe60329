"""The levers of memory, one at a time: what each of four H100s takes for the phantoms' step at 64 images a chip.

    python benchmarks/levers.py

Needs XLA's CUDA compiler; compiles for two minutes each, keeps what it has found in runs/plans, and writes
benchmarks/results/levers-DATE.json.
"""

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


def base() -> ConfigDict:
    """The phantoms' diffusion, its autoencoder described, as it has no checkpoint here."""
    file = ROOT / "configs" / "phantom.py"
    config = configs.load(
        f"{file}:diffusion", ["--config.batch_size=256", "--config.model.base=", "--config.data.cache=cache"]
    )
    with config.unlocked():
        config.model.vae = configs.load(f"{file}:autoencoder").model.vae
    return config


def main() -> None:
    target, found = targets.parse("h100:4"), {}
    for name, values in LEVERS.items():
        config = configs.changed(base(), [f"--config.{value}" for value in values])
        (point,) = sweep.sweep([config], target, ROOT / "runs" / "plans")
        memory = point.found["memory"]
        found[name] = memory | {"total": sum(memory.values())}
        kinds = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in found[name].items())
        print(f"{name}: {kinds} MiB", flush=True)
    record.write("levers", tuple(sweep.versions()), found)


if __name__ == "__main__":
    main()
