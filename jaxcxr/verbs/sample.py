"""Generate images from prompts.

Writes OUT/00000.png … and OUT/manifest.jsonl, a line an image: prompt, seed, settings, checkpoint, and that it
is synthetic, which every PNG's metadata says too. Image number i depends on the seed, i and its prompt alone.
The sampler is that of the checkpoint's scheduler, with its settings, unless options change it. OUT appears when all
images are there. An interrupted job resumes when it is run again. Others cannot read OUT: a prompt may be a patient's
report.
"""

import argparse
from pathlib import Path

EXAMPLE = 'jaxcxr sample --checkpoint runs/phantom/diffusion --prompt "Small left pleural effusion." --out runs/samples'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="workdir, diffusers folder or Orbax folder")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    prompts.add_argument(
        "--prompts", type=Path, help="file of prompts, one a line; or .jsonl whose lines have a `prompt` field"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new")
    parser.add_argument("--sampler", help="ddim, pndm, euler, dpm++, unipc, …; default: the checkpoint's own")
    parser.add_argument("--karras", action="store_true", help="noise levels of Karras et al. 2022")
    parser.add_argument("--timestep-spacing", help="linspace, leading or trailing; default: the checkpoint's own")
    parser.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=4.0, help="1 is none; default: %(default)s")
    parser.add_argument(
        "--eta", type=float, default=0.0, help="noise that ddim adds on the way, 0 to 1; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--size", type=int, help="pixels of a side; default: what the U-Net was trained for")
    parser.add_argument("--batch-size", type=int, default=16, help="images at once; default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: %(default)s")
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a workdir; default: %(default)s")
    parser.add_argument(
        "--latents", type=Path, metavar="FILE.npy", help="the initial noise, float32 N×C×H×W as diffusers takes it"
    )
    parser.add_argument("--gray", action="store_true", help="average the channels of a colour autoencoder")


def run(args: argparse.Namespace) -> None:
    """Samples; raises UserError on a user's mistake."""
    import jax.numpy as jnp

    from jaxcxr import interop
    from jaxcxr.diffusion import samplers
    from jaxcxr.generate import default_size
    from jaxcxr.interop.pipeline import from_files
    from jaxcxr.sample import Settings, read_prompts, sample

    prompts = read_prompts(args.prompts) if args.prompts else [{"prompt": prompt} for prompt in args.prompt]
    described = from_files(interop.read(args.checkpoint).files, only=("unet", "vae"))
    size = default_size(described) if args.size is None else args.size
    sampler = args.sampler or samplers.NAMES[described.sampler().scheduler]
    settings = Settings(
        checkpoint=str(args.checkpoint),
        checkpoint_step=interop.orbax.latest_step(args.checkpoint),
        weights=args.weights,
        sampler=sampler,
        steps=args.steps,
        guidance=args.guidance,
        eta=args.eta,
        seed=args.seed,
        size=size,
        dtype=args.dtype,
        latents=str(args.latents) if args.latents else None,
        gray=args.gray,
        karras=args.karras,
        timestep_spacing=args.timestep_spacing,
    )
    if settings.already_done(args.out, prompts):
        print(f"{args.out}: already sampled, {len(prompts)} images")
        return
    pipeline = interop.load(args.checkpoint, dtype=jnp.dtype(args.dtype), ema=args.weights == "ema")
    sample(pipeline, prompts, settings, args.out, args.batch_size)
