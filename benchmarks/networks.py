"""Forward and backward of the phantom networks, ours against diffusers' in PyTorch, in one run on this machine.

    python benchmarks/networks.py

Each round times ours and theirs one after the other, so that the ratio holds when the machine's speed drifts.
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
sys.path.insert(0, str(ROOT / "configs"))

import diffusers  # noqa: E402
import phantom  # noqa: E402
import torch  # noqa: E402

from jaxcxr.models import AutoencoderKL, UNet2DConditionModel, abstract, split_moments, with_parameters  # noqa: E402
from jaxcxr.models.named import initial_parameters  # noqa: E402

ROUNDS = 7


def plain(config):
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def unet_pair(batch):
    module = abstract(UNet2DConditionModel, phantom.UNET)
    parameters = initial_parameters(UNet2DConditionModel, phantom.UNET, jax.random.key(0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 16, 16, 4), np.float32)
    states = rng.standard_normal((batch, 77, phantom.UNET["cross_attention_dim"]), np.float32)
    t = np.arange(batch, dtype=np.int32)
    gradient = jax.jit(jax.grad(lambda p: (with_parameters(module, p)(x, t, states) ** 2).mean()))
    reference = diffusers.UNet2DConditionModel(**plain(phantom.UNET))
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t).long(), torch.from_numpy(states)

    def theirs():
        reference.zero_grad()
        reference(*inputs).sample.square().mean().backward()

    return lambda: jax.block_until_ready(gradient(parameters)), theirs


def vae_pair(batch):
    module = abstract(AutoencoderKL, phantom.VAE)
    parameters = initial_parameters(AutoencoderKL, phantom.VAE, jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((batch, 64, 64, 1), np.float32)

    def loss(parameters):
        vae = with_parameters(module, parameters)
        return ((vae.decode(split_moments(vae.encode(x))[0]) - x) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))
    reference = diffusers.AutoencoderKL(**plain(phantom.VAE))
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def theirs():
        reference.zero_grad()
        (reference(image).sample - image).square().mean().backward()

    return lambda: jax.block_until_ready(gradient(parameters)), theirs


def seconds(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main():
    for name, pair, batch in (("unet", unet_pair, 32), ("vae", vae_pair, 16)):
        ours, theirs = pair(batch)
        compile_seconds = seconds(ours)
        theirs()
        rounds = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
        found = {
            "batch": batch,
            "compile_s": round(compile_seconds, 2),
            "jaxcxr_img_per_s": round(batch / statistics.median(r[0] for r in rounds), 2),
            "pytorch_img_per_s": round(batch / statistics.median(r[1] for r in rounds), 2),
            "speedup": round(statistics.median(r[1] / r[0] for r in rounds), 2),
            "speedup_range": [round(f(r[1] / r[0] for r in rounds), 2) for f in (min, max)],
        }
        record.write("networks", ("jax", "torch", "diffusers"), {name: found})


if __name__ == "__main__":
    main()
