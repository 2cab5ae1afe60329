"""Convert checkpoints between diffusers, Stable Diffusion's single files and Orbax, and publish adapters.

SRC is any kind of checkpoint, here or ORG/NAME of the Hugging Face Hub: a diffusers folder (safetensors, shards, fp16
variants, PyTorch's .bin), a single .safetensors or .ckpt file in Stable Diffusion's original layout, a folder of Flax
msgpack, an Orbax folder, a workdir, or a text encoder's folder. Nothing in a pickled file is ever executed. The kind of
DST is --to: a diffusers folder loads with StableDiffusionPipeline.from_pretrained, a single file in user interfaces
that want one, an Orbax folder is a base for training, an embedding is the words alone that a text encoder has learnt,
of a workdir its own: one word in DST.safetensors or, as AUTOMATIC1111 has it, DST.pt; several in a folder. DST appears
whole or not at all; tensors keep their dtype unless --dtype is given. The newest checkpoint of a workdir is read, or
the best one of a run that was stopped early; a damaged one is refused in one line, which names an older one that is
whole.

--adapter merges a LoRA or a textual inversion into SRC. --to lora publishes the LoRA that a workdir has learnt, as
diffusers' load_lora_weights reads it; --to lora-kohya for user interfaces that want kohya's names. DST is then a new
folder, or a file that ends in .safetensors.

--push uploads DST with its card to the Hugging Face Hub when it is written: privately, unless --public is given.

--whiten is for an autoencoder of one's own, before anything learns from its latents: it gives their channels one width
over the images of a folder, which helps a U-Net to learn small things, and changes no reconstruction.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcxr import options

_ADAPTERS = {"lora": "peft", "lora-kohya": "kohya"}  # the layouts of what is not a whole checkpoint
_IMAGES = 512  # whose latents are whitened, drawn at random
EXAMPLE = "jaxcxr convert runs/phantom/diffusion runs/phantom/diffusers --to diffusers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint of any kind, or ORG/NAME of the hub")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder or file to write, new")
    parser.add_argument(
        "--to", required=True, choices=["diffusers", "orbax", "single-file", *_ADAPTERS, "embedding", "controlnet"]
    )
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in SRC")
    parser.add_argument("--only", metavar="NETWORKS", help="of unet,vae,text_encoder; default: all in SRC")
    parser.add_argument(
        "--weights", default="ema", choices=["ema", "raw"], help="which, where SRC has both; default: %(default)s"
    )
    options.add_adapters(parser, "merge into SRC")
    parser.add_argument(
        "--config", type=Path, metavar="DIR", help="for a single file: diffusers folder with its configs and tokenizer"
    )
    parser.add_argument(
        "--prediction-type", choices=["epsilon", "v_prediction"], help="for a single file of Stable Diffusion 2"
    )
    parser.add_argument(
        "--whiten", metavar="IMAGES", help="of an autoencoder alone: prepared folder, or any folder of its images"
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", default="10GB", help="default: %(default)s")
    parser.add_argument("--license", metavar="NAME", default="other", help="for the model card; default: %(default)s")
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="upload DST, a folder, to this repository of the hub; hf auth login comes first",
    )
    parser.add_argument("--public", action="store_true", help="with --push: for everybody to read")
    parser.add_argument("--verify", action="store_true", help="read the result back and compare every tensor")


def run(args: argparse.Namespace) -> None:
    """Converts; raises UserError on a user's mistake."""
    from jaxcxr import hub

    _check_push(args)
    _convert(args)
    if args.push:
        print(f"{hub.push(args.destination, args.push, public=args.public)}: {args.destination} is uploaded")


def _check_push(args: argparse.Namespace) -> None:
    """Raises UserError where the result could not be uploaded: before it is made."""
    from jaxcxr import hub
    from jaxcxr.errors import UserError

    if args.public and not args.push:
        raise UserError("--public: is for --push; give both")
    if not args.push:
        return
    if args.to not in ("diffusers", *_ADAPTERS) or args.destination.suffix == ".safetensors":
        raise UserError(
            f"--push {args.push}: is for a folder with a card; give --to diffusers, or --to lora and a folder"
        )
    hub.check_push(args.push)


def _convert(args: argparse.Namespace) -> None:
    import numpy as np

    from jaxcxr import hub, interop
    from jaxcxr.errors import UserError
    from jaxcxr.interop import adapters, card, verify, wanted

    only = _known(tuple(args.only.split(",")) if args.only else None)
    dtype, ema = np.dtype(args.dtype) if args.dtype else None, args.weights == "ema"
    if args.whiten is not None and args.to in (*_ADAPTERS, "embedding"):
        raise UserError(f"--whiten: is for an autoencoder; leave it out with --to {args.to}")
    if args.to in _ADAPTERS:
        return _publish(args, only, dtype, ema)
    if args.to == "embedding":
        return _embedding(args)
    if args.to == "controlnet":
        return _controlnet(args, dtype, ema)
    read = None if args.adapter else only
    folder = hub.find(args.source, wanted.of_checkpoint(read))
    source = interop.read(
        folder,
        only=read,
        ema=ema,
        config=args.config,
        prediction_type=args.prediction_type,
    )
    source = adapters.merged(source, args.adapter, args.adapter_weight, ema=ema).only(only)
    if args.whiten is not None:
        source = _whitened(source, args.whiten)
    if args.to == "orbax":
        interop.orbax.write(source, args.destination, dtype=dtype)
    elif args.to == "single-file":
        _check_words(source.files, args.source)
        interop.single_file.write(source, args.destination, dtype=dtype)
    else:
        source = card.with_card(source, folder, args.license)
        interop.diffusers.write(source, args.destination, dtype=dtype, max_shard_size=_size(args.max_shard_size))
    print(f"{args.destination}: {', '.join(source.networks)} as {args.to}, {args.dtype or 'dtypes kept'}")
    if "tokenizer" not in {name.split("/")[0] for name in source.files} and "text_encoder" in source.networks:
        print(f"{args.destination}: has no tokenizer, as {args.source} has none; --config DIR gives one")
    if args.verify:
        for line in verify.compare(source, args.destination, config=args.config):
            print(line)


def _whitened(source: Any, place: str) -> Any:
    """An autoencoder's checkpoint with its latents whitened over the images of a folder."""
    import numpy as np

    from jaxcxr.evaluation.evaluate import some
    from jaxcxr.evaluation.pictures import read_pictures
    from jaxcxr.evaluation.sets import open_set
    from jaxcxr.interop import whitening

    images = some(open_set(place), _IMAGES, seed=0)
    pictures = read_pictures(images, images.side(), skip=True)
    return whitening.whitened(source, np.stack([each.pixels for each in pictures]))


def _publish(args: argparse.Namespace, only: tuple[str, ...] | None, dtype: Any, ema: bool) -> None:
    """Writes the adapter that a workdir has learnt."""
    from jaxcxr import hub
    from jaxcxr.errors import UserError
    from jaxcxr.interop import adapter_files, adapters, card, wanted

    for option, given in (("adapter", args.adapter or args.adapter_weight), ("verify", args.verify)):
        if given:
            raise UserError(f"--{option}: is for whole checkpoints; leave it out with --to {args.to}")
    folder = hub.find(args.source, wanted.of_adapter)
    adapter = {
        layer: each
        for layer, each in adapters.of_workdir(folder, ema=ema).items()
        if only is None or layer.split(".")[0] in only
    }
    if not adapter:
        raise UserError(f"--only {args.only}: {args.source} has no adapter of that; leave it out")
    networks = dict.fromkeys(layer.split(".")[0] for layer in adapter)
    about = card.of_adapter(folder, networks, args.license)
    file = adapter_files.write(adapter, args.destination, _ADAPTERS[args.to], dtype=dtype, card=about)
    print(f"{file}: {len(adapter)} layers of {', '.join(networks)} as {args.to}, {args.dtype or 'dtypes kept'}")
    if words := adapters.words_learnt(folder):
        print(f"{args.source}: has learnt {', '.join(words)} too, which {file} does not hold; --to embedding does")


def _controlnet(args: argparse.Namespace, dtype: Any, ema: bool) -> None:
    """Writes a ControlNet alone."""
    from jaxcxr import interop
    from jaxcxr.errors import UserError

    for option in ("only", "verify", "adapter"):
        if getattr(args, option):
            raise UserError(f"--{option}: is not for --to controlnet")
    source = interop.read(args.source, only=("controlnet",), ema=ema)
    interop.diffusers.write_controlnet(source, args.destination, dtype=dtype)
    print(f"{args.destination}: a ControlNet, {args.dtype or 'dtypes kept'}")


def _embedding(args: argparse.Namespace) -> None:
    """Writes the words of a text encoder alone."""
    import numpy as np

    from jaxcxr import hub, interop
    from jaxcxr.errors import UserError
    from jaxcxr.interop import adapters, embeddings, orbax, wanted

    for option in ("only", "verify"):
        if getattr(args, option):
            raise UserError(f"--{option}: is not for --to embedding")
    if args.destination.suffix == ".pt" and args.dtype not in (None, "float32"):
        raise UserError(f"--dtype {args.dtype}: a .pt file of vectors is float32; name a .safetensors file")
    folder = hub.find(args.source, wanted.of_checkpoint(("text_encoder",)))
    source = interop.read(folder, only=("text_encoder",), ema=args.weights == "ema", config=args.config)
    found = embeddings.of(source, adapters.words_learnt(folder) or None)
    if not found:
        raise UserError(f"{args.source}: has no word that was added to its tokenizer; train config.textual_inversion")
    found = {word: vectors.astype(np.dtype(args.dtype or vectors.dtype)) for word, vectors in found.items()}
    files = embeddings.write_all(args.destination, found, step=orbax.step_to_read(folder))
    for file, (word, vectors) in zip(files, found.items(), strict=True):
        print(f"{file}: {word}, {len(vectors)} vectors of {vectors.shape[1]}, {vectors.dtype}")


def _check_words(files: Mapping[str, bytes], where: Path) -> None:
    """Raises UserError where a tokenizer has further words, which a single file has no place for."""
    from jaxcxr.errors import UserError
    from jaxcxr.interop import embeddings

    if words := embeddings.words_of(files):
        raise UserError(
            f"{where}: a single file has no tokenizer, and {words[0]!r} would be lost; give the base with --to"
            " single-file and the word with --to embedding"
        )


def _known(only: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from jaxcxr.errors import UserError
    from jaxcxr.interop.config_files import NETWORKS

    for name in only or ():
        if name not in NETWORKS:
            raise UserError(f"--only {name}: no such network; there are {', '.join(NETWORKS)}")
    return only


def _size(text: str) -> int:
    """Bytes of `10GB`, `500MB` or a plain number, as diffusers reads them."""
    from jaxcxr.errors import UserError

    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}
    number, unit = text.rstrip("GMKB"), text[len(text.rstrip("GMKB")) :]
    if unit not in units or not number.isdecimal() or int(number) == 0:
        raise UserError(f"--max-shard-size {text}: give a size like 10GB, 500MB or a number of bytes")
    return int(number) * units[unit]
