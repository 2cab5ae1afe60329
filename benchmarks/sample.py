"""Our pipeline against diffusers' StableDiffusionPipeline: the same weights, latents, steps, guidance and precision.

    python benchmarks/sample.py                   the base `phantom`, 64², on whatever is here
    python benchmarks/sample.py --model medium    a U-Net of 88 million random weights, 256²
    python benchmarks/sample.py --model stable-diffusion-v1-5 --batch 8 --steps 50 --dtype bfloat16 --compile   on a GPU

Both load one diffusers folder and draw the same pictures with DDIM. The first time of each is from the folder to the
first pictures: reading, and compiling where it is done, nothing of which is cached. Each is a process of its own, so
that its memory is its own. On a CPU they take turns; on a GPU the second has it when the first is done. Writes
benchmarks/results/sample-DATE.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import sides

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxcxr import platforms  # noqa: E402

platforms.only_those_here()
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(platforms.GPU_MEMORY))

import numpy as np  # noqa: E402

PROMPT = "Small left pleural effusion."
# 256² pictures are 32² latents; the autoencoder is Stable Diffusion's at half its widths, of gray pictures.
MEDIUM = {
    "unet": {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [128, 256, 384, 384],
        "layers_per_block": 2,
        "cross_attention_dim": 256,
        "attention_head_dim": 8,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae": {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "sample_size": 256,
        "block_out_channels": [64, 128, 256, 256],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 256,
        "max_position_embeddings": 77,
        "vocab_size": 600,
        "bos_token_id": 598,
        "eos_token_id": 599,
    },
}
BATCH_AND_STEPS = {"phantom": (8, 25), "medium": (4, 6)}


def written(model: str, folder: Path) -> Path:
    """The diffusers folder to load; of random weights, where no base has the name."""
    import jax

    from jaxcxr import bases, interop
    from jaxcxr.data import tokens
    from jaxcxr.interop import published
    from jaxcxr.interop.config_files import SCHEDULER_CONFIG, model_index, network_config
    from jaxcxr.interop.pipeline import from_files, initialize

    if model == "phantom":
        return bases.find(model)
    files = published.files(model)
    if model == "medium":
        files = {f"{name}/config.json": network_config(name, config) for name, config in MEDIUM.items()}
        files[SCHEDULER_CONFIG] = published.files("stable-diffusion-v1-5")[SCHEDULER_CONFIG]
    if files is None:
        raise SystemExit(f"--model {model}: may be phantom, medium, or one of {published.NAMES}")
    tokens.train([PROMPT], 600, folder / "tokenizer")
    files |= {f"tokenizer/{file.name}": file.read_bytes() for file in (folder / "tokenizer").iterdir()}
    files["model_index.json"] = model_index(files)
    pipeline = from_files(files)
    pipeline = pipeline.with_parameters(initialize(pipeline, jax.random.key(0)))
    interop.save(pipeline, folder / "model")
    return folder / "model"


def ours(args: argparse.Namespace, latents: np.ndarray) -> Callable[[], np.ndarray]:
    """Draws, float32 (B, H, W, C) in [0, 1]."""
    import jaxcxr

    pipe = jaxcxr.load(args.folder, dtype=args.dtype)
    how = {"steps": args.steps, "guidance": args.guidance, "sampler": "ddim", "output_type": "np"}
    return lambda: pipe([PROMPT] * args.batch, latents=latents, **how)


def theirs(args: argparse.Namespace, latents: np.ndarray) -> Callable[[], np.ndarray]:
    """The same with diffusers."""
    import diffusers
    import torch

    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, args.dtype)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(args.folder, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    if args.compile:
        pipe.unet, pipe.vae.decode = torch.compile(pipe.unet), torch.compile(pipe.vae.decode)
    how = {"num_inference_steps": args.steps, "guidance_scale": args.guidance, "output_type": "np"}
    start = torch.from_numpy(latents).to(device, dtype)
    return lambda: pipe([PROMPT] * args.batch, latents=start, **how).images


def serve(args: argparse.Namespace) -> None:
    """One side."""
    started = time.perf_counter()
    latents = np.load(args.latents)
    draw = {"jaxcxr": ours, "diffusers": theirs}[args.side](args, latents)
    np.save(args.latents.with_name(f"{args.side}.npy"), draw())
    told = {"first_s": round(time.perf_counter() - started, 1)}

    def seconds() -> float:
        started = time.perf_counter()
        draw()
        return time.perf_counter() - started

    sides.serve(args.side, told, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phantom", help="phantom, medium, or a published one: stable-diffusion-v1-5")
    parser.add_argument("--batch", type=int, help="pictures at once")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="times that each side draws after its first")
    parser.add_argument("--compile", action="store_true", help="torch.compile theirs")
    parser.add_argument("--side", choices=sides.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--latents", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    usual = BATCH_AND_STEPS.get(args.model, (4, 50))
    args.batch, args.steps = args.batch or usual[0], args.steps or usual[1]
    if args.side:
        sides.guarded(lambda: serve(args))
        return
    with tempfile.TemporaryDirectory() as temporary:
        row = compared(args, Path(temporary))
    how = f"{args.batch} images, {args.steps} DDIM steps, guidance {args.guidance:g}, {args.dtype}"
    record.write("sample", ("jax", "torch", "diffusers"), {f"{args.model}, {how}" + ", compiled" * args.compile: row})


def compared(args: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """The row of the results."""
    import torch

    folder = written(args.model, temporary)
    unet = json.loads((folder / "unet" / "config.json").read_text())
    side, channels = unet["sample_size"], unet["in_channels"]
    latents = temporary / "latents.npy"
    np.save(latents, np.random.default_rng(0).standard_normal((args.batch, channels, side, side), np.float32))
    sys.argv += ["--folder", str(folder), "--latents", str(latents)]
    times, told, memory = sides.measured(args.rounds, take_turns=not torch.cuda.is_available())
    row = sides.compared(args.batch, times, memory)
    row |= {f"{name}_{key}": value for name in told if told[name] for key, value in told[name].items()}
    if all(told.values()):
        first, second = (np.load(latents.with_name(f"{name}.npy")) for name in sides.SIDES)
        row["gray_levels_apart"] = round(255 * float(np.abs(first - second).max()), 3)
        row["gray_levels_spread"] = round(255 * float(second.std()), 1)
    return row


if __name__ == "__main__":
    main()
