"""Generate images from prompts, or edit images.

Writes OUT/00000.png … and OUT/manifest.jsonl, a line an image: prompt, seed, settings, checkpoint, and that it
is synthetic, which every PNG's metadata says too. Image number i depends on the seed, i and its prompt alone. With
OUT/metadata.jsonl the folder is an image folder too, which `jaxcxr prepare` and Hugging Face's datasets read;
--prepared writes what `jaxcxr train` reads besides. The sampler is that of the checkpoint's scheduler, with its
settings, unless options change it. OUT appears when all images are there. An interrupted job resumes when it is run
again. Several processes, started as for `jaxcxr train`, share the work. Other users cannot read OUT: a prompt may be a
patient's report. docs/sampling.md says what the options are for; what is said of a prompt here, a line of a .jsonl file
may say of its own: negative_prompt, compose, prompt_embeds, image, mask, edit_mask, keep_mask, control, strength, seed,
count.

A --config file is Python and is executed. Read a config file from someone else before you use it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcxr import buckets, options
from jaxcxr.errors import UserError, one_line

EXAMPLE = 'jaxcxr sample --checkpoint runs/phantom/diffusion --prompt "Small left pleural effusion." --out runs/samples'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=buckets.place,
        help="workdir, diffusers or Orbax folder, or ORG/NAME of the hub",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    prompts.add_argument(
        "--prompts", type=Path, help="file of prompts, one a line; or .jsonl whose lines have a `prompt` field"
    )
    prompts.add_argument(
        "--compose",
        nargs=2,
        action="append",
        metavar=("WEIGHT", "PROMPT"),
        help="show several prompts in one image; give it for each, 1 is the usual weight",
    )
    prompts.add_argument(
        "--prompt-embeds",
        type=Path,
        action="append",
        metavar="FILE",
        help="in place of a prompt: states of the text encoder, float32 L×D, .npy or .safetensors of one tensor",
    )
    parser.add_argument(
        "--interpolate",
        type=int,
        metavar="N",
        help="between two --prompt or two --prompt-embeds, N images of the same noise, and OUT.strip.png",
    )
    parser.add_argument("--negative-prompt", help="what to lead away from")
    parser.add_argument("--count", type=int, help="images of each prompt; default: 1")
    parser.add_argument("--out", required=True, type=buckets.output, help="folder to write, new; may be gs://…")
    parser.add_argument("--sampler", help="ddim, pndm, euler, dpm++, unipc, …; default: the checkpoint's own")
    parser.add_argument("--karras", action="store_true", help="noise levels of Karras et al. 2022")
    parser.add_argument("--timestep-spacing", help="linspace, leading or trailing; default: the checkpoint's own")
    parser.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=4.0, help="1 is none; default: %(default)s")
    parser.add_argument(
        "--guidance-rescale",
        type=float,
        default=0.0,
        help="bring the contrast of strong guidance back, 0 to 1; default: %(default)s",
    )
    parser.add_argument(
        "--eta", type=float, default=0.0, help="noise that ddim adds on the way, 0 to 1; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--size", type=int, help="pixels of a side; default: what the U-Net was trained for")
    parser.add_argument("--batch-size", type=int, default=16, help="images at once; default: %(default)s")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the computation; default: float32 on CPUs, else bfloat16"
    )
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a workdir; default: %(default)s")
    options.add_adapters(parser, "draw with")
    parser.add_argument(
        "--controlnet", type=Path, metavar="PATH", help="ControlNet to draw with: folder, or workdir of one"
    )
    parser.add_argument("--control", type=Path, help="its condition image, in colour or gray, of the pictures' size")
    parser.add_argument(
        "--control-scale", type=float, default=1.0, help="what a ControlNet adds is multiplied by it; default: 1"
    )
    parser.add_argument(
        "--latents", type=Path, metavar="FILE.npy", help="the initial noise, float32 N×C×H×W as diffusers takes it"
    )
    parser.add_argument("--gray", action="store_true", help="average the channels of a colour autoencoder")
    parser.add_argument(
        "--prepared", type=Path, metavar="DATA", help="folder to write too: what `jaxcxr prepare` makes of OUT"
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="with --prepared: its `data` section says how; default: every picture as it is, with its text",
    )
    edits = parser.add_argument_group("editing")
    edits.add_argument("--image", type=Path, help="image to edit; what `prepare` reads, of any size")
    edits.add_argument(
        "--strength",
        type=float,
        help="share of the steps that are taken, above 0 to 1; default: 0.8, with --mask 1, with --edit-mask 0.5",
    )
    edits.add_argument("--mask", type=Path, help="white where the image is painted anew; of the image's size")
    edits.add_argument("--colour", action="store_true", help="edit in colour; without it an edited image is gray")
    edits.add_argument("--keep-outside", action="store_true", help="paste the image's own pixels outside the mask")
    edits.add_argument(
        "--edit-mask", type=Path, help="in place of --mask: white where the image may change, as RadEdit changes it"
    )
    edits.add_argument(
        "--keep-mask", type=Path, help="with --edit-mask: white where the image stays; default: outside of that"
    )


def run(args: argparse.Namespace) -> None:
    """Samples; raises UserError on a user's mistake."""
    from jaxcxr.parallel import processes

    if args.overrides and args.config is None:
        raise UserError(f"{one_line(args.overrides[0])}: no such option; see jaxcxr sample --help")
    if args.config is not None and args.prepared is None:
        raise UserError(f"--config {args.config}: is for --prepared; give both")
    if args.prepared is not None and buckets.holds(args.out):
        raise UserError(f"--prepared {args.prepared}: is made of a folder of this machine; give a local --out with it")
    if args.prepared is not None and args.config is None and buckets.holds(args.checkpoint):
        raise UserError(f"--prepared {args.prepared}: takes no tokenizer from a bucket; give a local --checkpoint")
    with processes.joined():
        _sample(args)


def _sample(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from jaxcxr import interop, manifest
    from jaxcxr.interop import adapters
    from jaxcxr.interop.pipeline import from_files
    from jaxcxr.models.compute import usual_dtype
    from jaxcxr.parallel import processes
    from jaxcxr.rows import Rows
    from jaxcxr.sample import sample

    rows = Rows(_prompts(args), _given(args))
    processes.on_first(lambda: buckets.check(args.out))
    _pin(args)
    checkpoint = interop.read(args.checkpoint, ema=args.weights == "ema")
    checkpoint = adapters.merged(checkpoint, args.adapter, args.adapter_weight, ema=args.weights == "ema")
    if args.controlnet:
        checkpoint = interop.with_controlnet(checkpoint, args.controlnet, ema=args.weights == "ema")
    dtype = args.dtype or usual_dtype(jax.default_backend())
    settings = _settings(args, from_files(checkpoint.files, only=("unet", "vae")), dtype)
    if processes.from_first(lambda: [int(settings.already_done(args.out, rows))]) == [1]:
        processes.on_first(lambda: print(f"{args.out}: already sampled, {len(rows)} images"))
        processes.on_first(lambda: manifest.bring_up_to_date(args.out))
    else:
        sample(interop.load_read(checkpoint, dtype=jnp.dtype(dtype)), rows, settings, args.out, args.batch_size)
    if args.interpolate is not None:
        processes.on_first(lambda: None if manifest.strip_of(args.out).exists() else manifest.write_strip(args.out))
    if args.prepared is not None:
        processes.on_first(lambda: _prepare(args, settings.size))


def _pin(args: argparse.Namespace) -> None:
    """Gives the names of repositories of the hub their commits: what the manifest says is what is drawn with."""
    import json

    from jaxcxr import hub
    from jaxcxr.parallel.processes import text_from_first

    named = [args.checkpoint, *args.adapter, *([args.controlnet] if args.controlnet else [])]
    found = [buckets.place(each) for each in json.loads(text_from_first(lambda: json.dumps([*map(hub.pinned, named)])))]
    args.checkpoint, args.adapter = found[0], found[1 : 1 + len(args.adapter)]
    args.controlnet = found[-1] if args.controlnet else None


def _settings(args: argparse.Namespace, described: Any, dtype: str) -> Any:
    """What decides the images, of the options and the networks described in the checkpoint's configs."""
    from jaxcxr import interop
    from jaxcxr.diffusion import samplers
    from jaxcxr.generate import default_size
    from jaxcxr.interop import adapters
    from jaxcxr.manifest import Adapter, Settings

    return Settings(
        checkpoint=str(args.checkpoint),
        checkpoint_step=interop.orbax.step_to_read(args.checkpoint),
        weights=args.weights,
        sampler=args.sampler or samplers.NAMES[described.sampler().scheduler],
        steps=args.steps,
        guidance=args.guidance,
        guidance_rescale=args.guidance_rescale,
        eta=args.eta,
        seed=args.seed,
        size=default_size(described) if args.size is None else args.size,
        dtype=dtype,
        latents=str(args.latents) if args.latents else None,
        gray=args.gray,
        karras=args.karras,
        timestep_spacing=args.timestep_spacing,
        keep_outside=args.keep_outside,
        colour=args.colour,
        adapters=tuple(
            Adapter(str(path), weight, interop.orbax.step_to_read(path))
            for path, weight in adapters.pairs(args.adapter, args.adapter_weight)
        ),
        controlnet=args.controlnet and Adapter(str(args.controlnet), 1.0, interop.orbax.step_to_read(args.controlnet)),
        control_scale=args.control_scale,
    )


def _prepare(args: argparse.Namespace, size: int) -> None:
    """Prepares the finished folder as a data set."""
    from jaxcxr import config as configs
    from jaxcxr import hub
    from jaxcxr.data.prepare import prepare
    from jaxcxr.data.settings import of_pictures
    from jaxcxr.interop.wanted import of_checkpoint

    if args.config is not None:
        data = configs.load(args.config, args.overrides).data
    else:
        checkpoint = hub.find(args.checkpoint, of_checkpoint())
        folders = (checkpoint / "tokenizer", checkpoint / "model" / "tokenizer")
        data = of_pictures(size, next((str(folder) for folder in folders if folder.is_dir()), ""))
    prepare(data, args.out, args.prepared)


def _prompts(args: argparse.Namespace) -> Sequence[Mapping[str, Any]]:
    """The rows of the prompts file, or those that the options ask for."""
    from jaxcxr.rows import Lines

    if args.interpolate is not None:
        return _interpolated(args)
    if args.prompts:
        return Lines(args.prompts)
    if args.compose:
        return [{"compose": [{"weight": _weight(weight), "prompt": prompt} for weight, prompt in args.compose]}]
    return _ends(args)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say of all rows; what a file says of a row goes before it."""
    options = {
        "negative_prompt": args.negative_prompt,
        "strength": args.strength,
        "count": args.count,
        **{
            key: str(value)
            for key in ("image", "mask", "edit_mask", "keep_mask", "control")
            if (value := getattr(args, key))
        },
    }
    return {key: value for key, value in options.items() if value is not None}


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--compose {text[:100]!r}: is no weight; say --compose WEIGHT PROMPT for each prompt"
        ) from None


def _ends(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each --prompt or --prompt-embeds."""
    if args.prompt_embeds:
        return [{"prompt_embeds": str(file)} for file in args.prompt_embeds]
    return [{"prompt": prompt} for prompt in args.prompt or ()]


def _interpolated(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each picture of a strip, all of one seed."""
    if len(ends := _ends(args)) != 2 or args.interpolate < 2:
        raise UserError(
            f"--interpolate {args.interpolate}: wants 2 images or more, and two --prompt or two --prompt-embeds"
        )
    if args.count is not None:
        raise UserError(f"--count {args.count}: does not go with --interpolate, whose images have the same noise")
    first, last = ends
    shares = [number / (args.interpolate - 1) for number in range(args.interpolate)]
    return [{**first, "interpolate": {**last, "t": t}, "seed": args.seed} for t in shares]
