"""Forward and backward of networks, ours against diffusers' in PyTorch, in one run on this machine.

    python benchmarks/networks.py [NAME …]    of unet, vae (the phantoms'), medium (a U-Net of 88 million) and attention

Each round times ours and theirs one after the other, so that the ratio holds when the machine's speed drifts. The row
`attention` is ours alone: an autoencoder at 128² with attention in its middle against the same without.
Prints medians and writes benchmarks/results/networks-DATE.json.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import record

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "configs"), str(ROOT)]

import cxr_small  # noqa: E402
import diffusers  # noqa: E402
import phantom  # noqa: E402
import sample  # noqa: E402
import torch  # noqa: E402

from jaxcxr.models import (  # noqa: E402
    AutoencoderKL,
    UNet2DConditionModel,
    abstract,
    specialize,
    split_moments,
    with_parameters,
)
from jaxcxr.models.compute import compiler_options  # noqa: E402
from jaxcxr.models.named import initial_parameters  # noqa: E402
from jaxcxr.parallel import mesh as meshes  # noqa: E402

ROUNDS = 7


def plain(config):
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def gradient_of(kind, config, loss):
    """Our gradient of `loss(network)`, compiled as a train step is."""
    module = specialize(abstract(kind, config), platform=jax.default_backend())
    parameters = initial_parameters(kind, config, jax.random.key(0))
    options = compiler_options(meshes.own_mesh(), gradient=True)
    gradient = jax.jit(jax.grad(lambda p: loss(with_parameters(module, p))), compiler_options=options)
    return lambda: jax.block_until_ready(gradient(parameters))


def unet_pair(config, batch):
    rng, side = np.random.default_rng(0), config["sample_size"]
    x = rng.standard_normal((batch, side, side, 4), np.float32)
    states = rng.standard_normal((batch, 77, config["cross_attention_dim"]), np.float32)
    t = np.arange(batch, dtype=np.int32)
    ours = gradient_of(UNet2DConditionModel, config, lambda unet: (unet(x, t, states) ** 2).mean())
    reference = diffusers.UNet2DConditionModel(**plain(config))
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t).long(), torch.from_numpy(states)

    def theirs():
        reference.zero_grad()
        reference(*inputs).sample.square().mean().backward()

    return ours, theirs


def our_vae(config, x):
    def loss(vae):
        return ((vae.decode(split_moments(vae.encode(x))[0]) - x) ** 2).mean()

    return gradient_of(AutoencoderKL, config, loss)


def vae_pair(config, batch):
    x = np.random.default_rng(0).standard_normal((batch, 64, 64, 1), np.float32)
    reference = diffusers.AutoencoderKL(**plain(config))
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def theirs():
        reference.zero_grad()
        (reference(image).sample - image).square().mean().backward()

    return our_vae(config, x), theirs


def attention_pair(config, batch):
    x = np.random.default_rng(0).standard_normal((batch, 128, 128, 1), np.float32)
    return tuple(our_vae(config | {"mid_block_add_attention": has}, x) for has in (True, False))


PAIRS = {
    "unet": (unet_pair, phantom.UNET, 32),
    "vae": (vae_pair, phantom.VAE, 16),
    "medium": (unet_pair, sample.MEDIUM["unet"], 4),
    "attention": (attention_pair, cxr_small.VAE, 8),
}


def seconds(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main():
    for name in sys.argv[1:] or PAIRS:
        pair, config, batch = PAIRS[name]
        ours, theirs = pair(config, batch)
        compile_seconds = seconds(ours)
        theirs()
        rounds = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
        other = "without" if name == "attention" else "pytorch"
        found = {
            "batch": batch,
            "compile_s": round(compile_seconds, 2),
            "jaxcxr_img_per_s": round(batch / statistics.median(r[0] for r in rounds), 2),
            f"{other}_img_per_s": round(batch / statistics.median(r[1] for r in rounds), 2),
            "speedup": round(statistics.median(r[1] / r[0] for r in rounds), 2),
            "speedup_range": [round(f(r[1] / r[0] for r in rounds), 2) for f in (min, max)],
        }
        record.write("networks", ("jax", "torch", "diffusers"), {name: found})


if __name__ == "__main__":
    main()
