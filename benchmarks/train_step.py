"""Our train step against the step of diffusers' PyTorch training script, in one run on this machine.

    python benchmarks/train_step.py                                    a small U-Net, on whatever is here
    python benchmarks/train_step.py --model stable-diffusion-v1-5 --batch 32 --dtype bfloat16 --compile    on a GPU
    python benchmarks/train_step.py --model stable-diffusion-v1-5 --dtype bfloat16 --limit    the largest batch of each

Both learn the same U-Net from moments and text states that lie on the device: draw latents, noise and timesteps, MSE,
gradients, clipping, AdamW, moving average. Each is a process of its own, so that its memory is its own. On a CPU they
take turns, so that the ratio holds when the machine's speed drifts; on a GPU the second has it when the first is done.
A side that runs out of memory has null for its speed. --limit doubles each side's batch until it cannot, and tries half
as much again as it last could. Writes benchmarks/results/train-step-DATE.json.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import sides

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "configs"), str(ROOT)]

from jaxcxr import platforms  # noqa: E402

platforms.only_those_here()
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(platforms.GPU_MEMORY))

import base  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from jaxcxr.interop.config_files import network_config  # noqa: E402
from jaxcxr.interop.pipeline import StableDiffusion, from_files  # noqa: E402
from jaxcxr.parallel import chips  # noqa: E402
from jaxcxr.parallel import mesh as meshes  # noqa: E402
from jaxcxr.training import flops  # noqa: E402
from jaxcxr.training.program import make_program  # noqa: E402

STEPS, ROUNDS = 3, 5
VERSIONS = ("jax", "torch", "diffusers")
SMALL = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128, 256],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def networks(model: str) -> dict[str, bytes]:
    """The files of a pipeline: the U-Net to compare, and the smallest that will do beside it."""
    from tests import pipelines

    if model == "small":
        unet = SMALL
    else:
        from jaxcxr.interop import published

        found = published.files(model)
        if found is None:
            raise SystemExit(f"--model {model}: may be small, or one of {published.NAMES}")
        unet = json.loads(found["unet/config.json"])
    text = pipelines.TEXT | {"hidden_size": unet["cross_attention_dim"], "num_attention_heads": 4}
    text |= {"vocab_size": 600, "max_position_embeddings": 77, "bos_token_id": 598, "eos_token_id": 599}
    described = {"unet": unet, "vae": pipelines.VAE, "text_encoder": text}
    files = {f"{name}/config.json": network_config(name, config) for name, config in described.items()}
    files["scheduler/scheduler_config.json"] = json.dumps(pipelines.SCHEDULER).encode()
    return files


def ours(
    config: ConfigDict, pipeline: StableDiffusion, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that makes `STEPS` steps, and what its compiling told."""
    from jaxcxr.interop.pipeline import initialize

    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    program = make_program(config, pipeline, mesh)
    with jax.set_mesh(mesh):
        state, frozen = program.init(initialize(pipeline, jax.random.key(0)), jax.random.key(0))
        on_device = meshes.to_global(batch, mesh, config.batch_size)
        started = time.perf_counter()
        compiled = program.step.lower(state, frozen, on_device).compile()
        seconds = time.perf_counter() - started

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = compiled(state, frozen, on_device)
        jax.block_until_ready(metrics)

    memory = compiled.memory_analysis()
    work = flops.of_step(config, pipeline, program.adaptation, batch)
    return run, {
        "device": jax.devices()[0].device_kind,
        "compile_s": round(seconds, 1),
        "planned_peak_gb": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9, 2),
        "tflop_per_image": work / config.batch_size / 1e12,
    }


def theirs(
    config: ConfigDict, unet: dict[str, Any], batch: dict[str, np.ndarray], compiled: bool
) -> Callable[[], None]:
    """The same steps as diffusers' train_text_to_image.py makes them, with its EMAModel."""
    import diffusers
    import torch
    from diffusers.training_utils import EMAModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = diffusers.UNet2DConditionModel(**{k: v for k, v in unet.items() if not k.startswith("_")}).to(device)
    ema = EMAModel(network.parameters(), decay=config.ema_decay)
    ema.to(device)
    step_network = torch.compile(network) if compiled else network
    schedule = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=device == "cuda")
    moments = torch.from_numpy(batch["moments"].astype(np.float32)).permute(0, 3, 1, 2).to(device)
    states = torch.from_numpy(batch["states"].astype(np.float32)).to(device)
    low = config.dtype == "bfloat16"

    def run() -> None:
        for _ in range(STEPS):
            mean, logvar = moments.chunk(2, dim=1)
            latents = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * 0.18215
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=device)
            with torch.autocast(device, torch.bfloat16, enabled=low):
                found = step_network(schedule.add_noise(latents, noise, timesteps), timesteps, states).sample
            torch.nn.functional.mse_loss(found.float(), noise).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(network.parameters())
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / STEPS


def serve(args: argparse.Namespace) -> None:
    """One side."""
    config = base.get_config()
    config.batch_size, config.dtype, config.remat = args.batch, args.dtype, args.remat
    config.objective.caption_dropout = 0.0
    files = networks(args.model)
    unet = json.loads(files["unet/config.json"])
    rng, side = np.random.default_rng(0), unet["sample_size"]
    batch = {
        "moments": rng.standard_normal((args.batch, side, side, 8), np.float32).astype(args.dtype),
        "states": rng.standard_normal((args.batch, 77, unet["cross_attention_dim"]), np.float32).astype(args.dtype),
    }
    if args.side == "jaxcxr":
        from jaxcxr.data import tokens

        folder = ROOT / "runs" / "bench-tokenizer"
        tokens.train(["the lungs are clear"], 600, folder)
        files |= {f"tokenizer/{file.name}": file.read_bytes() for file in folder.iterdir()}
        run, told = ours(config, from_files(files, jnp.dtype(args.dtype)), batch)
    else:
        run, told = theirs(config, unet, batch, args.compile), {}
    run()
    sides.serve(args.side, told, lambda: seconds(run))


def limit(side: str, batch: int) -> int | None:
    """The largest batch that a side can take, of `batch` doubled again and again, and half as much again."""

    def fits(batch: int) -> bool:
        process = sides.Side(side, ["--batch", str(batch)])
        fit = process.seconds() is not None
        process.end()
        print(f"{side}: {batch} images {'fit' if fit else 'do not fit'}", file=sys.stderr, flush=True)
        return fit

    if not fits(batch):
        return None
    while fits(2 * batch):
        batch *= 2
    return batch * 3 // 2 if fits(batch * 3 // 2) else batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, or a published one: stable-diffusion-v1-5")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile theirs")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--side", choices=sides.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--limit", action="store_true", help="look for the largest batch in place of the speed")
    args = parser.parse_args()
    networks(args.model)
    if args.side:
        sides.guarded(lambda: serve(args))
        return

    import torch

    how = f"{args.dtype}, remat={args.remat}" + ", compiled" * args.compile
    if args.limit:
        found = {f"{side}_images": limit(side, args.batch) for side in sides.SIDES}
        record.write("train-step", VERSIONS, {f"{args.model}, largest batch, {how}": found})
        return
    times, told, memory = sides.measured(ROUNDS, take_turns=not torch.cuda.is_available())
    row = compared(args, times, told["jaxcxr"], memory)
    record.write("train-step", VERSIONS, {f"{args.model}, {args.batch} images, {how}": row})


def compared(args: argparse.Namespace, times: Any, told: dict[str, Any] | None, memory: Any) -> dict[str, Any]:
    """The row of the results."""
    row = sides.compared(args.batch, times, memory) | (told or {})
    chip = chips.of(told["device"]) if told else None
    if chip and row["jaxcxr_images_per_s"]:
        peak = chip.bf16 if args.dtype == "bfloat16" else chip.f32
        row["mfu"] = round(told["tflop_per_image"] * 1e12 * row["jaxcxr_images_per_s"] / peak, 3)
    return row


if __name__ == "__main__":
    main()
