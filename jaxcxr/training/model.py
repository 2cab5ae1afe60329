"""What a run starts from: the pipeline that its config describes, and its first weights."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr import hub, interop
from jaxcxr.adaptation import textual_inversion
from jaxcxr.data import tokens
from jaxcxr.diffusion import samplers
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import (
    CLASSIFIER,
    CONTROLNET,
    DISCRIMINATOR,
    LPIPS,
    SCHEDULER_CONFIG,
    TEACHER,
    TEACHER_TOKENIZER,
    controlnet_config,
    model_index,
    network_config,
    network_config_of,
    parse_object,
)
from jaxcxr.interop.pipeline import StableDiffusion, from_files, initialize
from jaxcxr.interop.wanted import of_weights
from jaxcxr.methods import method, networks
from jaxcxr.parsing import to_json
from jaxcxr.training import labels, loss_networks, text_fit
from jaxcxr.training.feed import tokenizer_folder

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CONV_IN = "unet.conv_in.kernel"
_OF_TEXT = ("text_encoder", "tokenizer")  # the folders that go together


def make_model(config: ConfigDict, key: jax.Array) -> tuple[StableDiffusion, dict[str, jax.Array]]:
    """The pipeline, its parameters as shapes, and the weights before the first step, by full name.

    A network that `config.model` describes starts at random; one that it leaves empty is that of the
    checkpoint `config.model.base`, or for the text encoder of `config.model.text_encoder_base` if there is one.
    The tokenizer comes with the text encoder; with a new one it is the data's. Parts of the U-Net start at random where
    it is fitted to another text encoder (`config.model.text_encoder_fit`).

    Raises:
      UserError: a network that the objective needs is neither described nor in the base, the description is
        not one of a network, or the base cannot be read.
    """
    described, inherited = parts(config)
    base = _read_bases(config.model, inherited, compute_dtype(config))
    pipeline = assemble(config, base.files, lambda: tokenizer_folder(config))
    drawn = {name: pipeline.networks[name] for name in (*described, DISCRIMINATOR) if name in pipeline.networks}
    fresh = initialize(StableDiffusion(drawn, {}), key)
    if TEACHER in pipeline.networks and not any(name.startswith(f"{TEACHER_TOKENIZER}/") for name in pipeline.files):
        raise UserError(f"config.model.base={config.model.base!r}: has no tokenizer/ for its text encoder, the teacher")
    names = pipeline.parameters()
    kept = {
        name: _widened(value, names[name].shape) if name == _CONV_IN else value
        for name, value in base.parameters().items()
        if name in names and not text_fit.is_fresh(config, name)
    }
    if CONTROLNET in pipeline.networks and f"{CONTROLNET}/config.json" not in base.files:
        fresh |= _new_controlnet(pipeline, kept, key)
    if config.model.text_encoder_fit:
        unet = StableDiffusion({"unet": pipeline.networks["unet"]}, {})
        fresh |= initialize(unet, key, functools.partial(text_fit.is_fresh, config))
    parameters = fresh | kept | (_pretrained(config) if CLASSIFIER in described else {})
    if LPIPS in pipeline.networks:
        parameters |= loss_networks.weights(config)
    if config.textual_inversion.tokens:
        parameters = textual_inversion.with_rows(config, pipeline.tokenizer, parameters, key)
    return pipeline, parameters


def _new_controlnet(pipeline: StableDiffusion, base: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """A ControlNet that is a copy of the base's U-Net as far as it goes, and adds nothing yet."""
    fresh = initialize(StableDiffusion({CONTROLNET: pipeline.controlnet}, {}), key)
    return {name: base.get(f"unet{name.removeprefix(CONTROLNET)}", value) for name, value in fresh.items()}


def parts(config: ConfigDict) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The architectures of the networks that `config.model` describes, and the names of those that it inherits.

    Raises:
      UserError: a text encoder that is to learn from the base's is not given.
    """
    needed, model = [name for name in networks(config) if name not in loss_networks.NAMES], config.model
    described = {name: model[name].to_dict() for name in needed if model.get(name)}
    if TEACHER in needed and not (model.text_encoder_base or "text_encoder" in described):
        raise UserError(
            f"config.model.text_encoder_base: is empty; name the text encoder that is to learn from that of"
            f" config.model.base, {model.base!r}"
        )
    return described, tuple(name for name in needed if name not in described)


def assemble(config: ConfigDict, base: Mapping[str, bytes], tokenizer: Callable[[], Path]) -> StableDiffusion:
    """The pipeline of a run, its parameters as shapes.

    Args:
      config: describes some of the networks.
      base: the files of a checkpoint, which has the others.
      tokenizer: gives the folder of the tokenizer for a new text encoder.

    Raises:
      UserError: as `make_model`.
    """
    model, needed, (described, inherited) = config.model, networks(config), parts(config)
    for name in inherited:
        if f"{name}/config.json" not in base and name != CONTROLNET:
            if name == TEACHER:
                raise UserError(f"config.model.base={model.base!r}: has no text_encoder/ to learn from")
            raise UserError(
                f"config.model.{name}: describe it, or set config.model.base to a checkpoint with {name}/"
                f" (it is {model.base!r})"
            )
    carried = {*inherited, "scheduler", *({TEACHER_TOKENIZER} if TEACHER in needed else ())}
    files = {name: data for name, data in base.items() if name.split("/")[0] in carried}
    if "unet" in needed:
        if model.scheduler:
            told = parse_object(SCHEDULER_CONFIG, base.get(SCHEDULER_CONFIG, b"{}"))
            changed = samplers.changed(told, model.scheduler.to_dict())
            files[SCHEDULER_CONFIG] = to_json(changed)
        if "text_encoder" in described:
            folder = tokenizer()
            described["text_encoder"] |= _vocabulary(tokens.load(folder))
            found = [file for file in sorted(folder.iterdir()) if file.name in tokens.FILES]
            files |= {f"tokenizer/{file.name}": file.read_bytes() for file in found}
        else:
            files |= {name: data for name, data in base.items() if name.startswith("tokenizer/")}
    if CLASSIFIER in described:
        described[CLASSIFIER] = _classifier(config)
    files |= {f"{name}/config.json": network_config(name, text) for name, text in described.items()}
    others = loss_networks.described(config, files)
    files |= {f"{name}/config.json": network_config(name, text) for name, text in others.items()}
    files = _with_inputs(config, text_fit.with_fit(config, textual_inversion.with_words(config, files)))
    if CONTROLNET in needed and f"{CONTROLNET}/config.json" not in files:
        files[f"{CONTROLNET}/config.json"] = controlnet_config(files)
    files["model_index.json"] = model_index(files)

    pipeline = from_files(files, compute_dtype(config))
    if "unet" in needed:
        _check_fit(pipeline, method(config).unet_inputs)
        if "image" in method(config).reads:
            pipeline = _with_sample_size(pipeline, config.data.size, compute_dtype(config))
    return pipeline


def _read_bases(model: ConfigDict, inherited: tuple[str, ...], dtype: Any) -> StableDiffusion:
    """The networks to inherit, a text encoder with its tokenizer from its own checkpoint where it has one."""
    separate, taught = bool(model.text_encoder_base) and "text_encoder" in inherited, TEACHER in inherited
    wanted = [name for name in inherited if name != TEACHER and not (separate and name == "text_encoder")]
    wanted += ["text_encoder"] if taught else []  # which becomes the teacher
    base = interop.load(model.base, dtype=dtype, only=wanted) if model.base and wanted else StableDiffusion({}, {})
    if taught:
        networks = {TEACHER if name == "text_encoder" else name: each for name, each in base.networks.items()}
        base = StableDiffusion(networks, with_teacher(base.files))
    if not separate:
        return base
    encoder = interop.load(model.text_encoder_base, dtype=dtype, only=_OF_TEXT)
    return StableDiffusion(base.networks | encoder.networks, with_text_encoder(base.files, encoder.files))


def with_text_encoder(files: Mapping[str, bytes], encoder: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a pipeline with text encoder and tokenizer from those of another checkpoint."""
    kept = {name: data for name, data in files.items() if name.split("/")[0] not in _OF_TEXT}
    return kept | {name: data for name, data in encoder.items() if name.split("/")[0] in _OF_TEXT}


def with_teacher(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a pipeline whose text encoder is the teacher of another."""
    names = {"text_encoder": TEACHER, "tokenizer": TEACHER_TOKENIZER}
    split = ((*name.partition("/"), data) for name, data in files.items())
    return {names.get(folder, folder) + slash + rest: data for folder, slash, rest, data in split}


def _with_inputs(config: ConfigDict, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a pipeline whose U-Net sees as many channels as the method gives it, where it saw latents alone."""
    if not {"unet/config.json", "vae/config.json"} <= set(files):
        return dict(files)
    unet = parse_object("unet/config.json", files["unet/config.json"])
    latents = network_config_of("vae", files["vae/config.json"]).latent_channels
    wanted = method(config).unet_inputs(latents)
    if wanted == latents or network_config_of("unet", files["unet/config.json"]).in_channels != latents:
        return dict(files)
    return {**files, "unet/config.json": to_json(unet | {"in_channels": wanted})}


def _widened(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A first convolution's kernel (H, W, in, out) that takes further channels, of which it makes nothing yet."""
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, max(0, shape[2] - kernel.shape[2])), (0, 0)))


def _check_fit(pipeline: StableDiffusion, unet_inputs: Callable[[int], int]) -> None:
    """Raises UserError where two networks do not fit together, or the U-Net asks for more than text."""
    pipeline.require_text_alone()
    unet, latents = pipeline.unet.config, pipeline.vae.config.latent_channels
    width = pipeline.text_encoder.config.hidden_size
    if unet.in_channels != unet_inputs(latents):
        raise UserError(
            f"the U-Net's in_channels is {unet.in_channels}, the autoencoder has {latents} latent_channels; the method"
            f" wants a U-Net of {' or '.join(map(str, sorted({latents, unet_inputs(latents)})))}"
        )
    wanted = {unet.encoder_hid_dim} if unet.encoder_hid_dim else set(unet.per_block("cross_attention_dim"))
    if wanted != {width}:
        raise UserError(
            f"the U-Net's cross_attention_dim is {unet.cross_attention_dim}, the text encoder's hidden_size {width};"
            " config.model.text_encoder_fit=linear, mlp or cross_attention fits a base's U-Net to another text encoder"
        )


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype that `config.dtype` names; weights are float32 whatever it is."""
    if config.dtype not in DTYPES:
        raise UserError(f"config.dtype={config.dtype!r}: may be {' or '.join(DTYPES)}")
    return DTYPES[config.dtype]


def with_scaling_factor(pipeline: StableDiffusion, factor: float, dtype: Any) -> StableDiffusion:
    """The same pipeline with `factor` in its autoencoder's config."""
    config = json.loads(pipeline.files["vae/config.json"]) | {"scaling_factor": factor}
    text = to_json(config)
    return from_files(pipeline.files | {"vae/config.json": text}, dtype)


def _with_sample_size(pipeline: StableDiffusion, side: int, dtype: Any) -> StableDiffusion:
    """The same pipeline with the latents of images of `side` pixels as the size that its U-Net is for.

    It is the size that is drawn where none is asked for, in diffusers too.
    """
    config = json.loads(pipeline.files["unet/config.json"])
    latent = side // pipeline.vae.config.vae_scale_factor
    if config.get("sample_size") == latent:
        return pipeline
    text = to_json(config | {"sample_size": latent})
    return from_files(pipeline.files | {"unet/config.json": text}, dtype)


def _classifier(config: ConfigDict) -> dict[str, Any]:
    """The `config.json` that `config.model.classifier` describes, with what it leaves to the data."""
    given = config.model.classifier.to_dict()
    channels = 3 if given.pop("pretrained", "") else config.data.channels
    own = {"in_channels": channels, **given, "image_size": given.get("image_size") or config.data.size}
    return own | {"classes": given.get("classes") or labels.all_labels(config)}


def _pretrained(config: ConfigDict) -> dict[str, jax.Array]:
    """The weights of the file that `config.model.classifier` names, of another head; none where it names none."""
    chosen = config.model.classifier
    if not (file := chosen.get("pretrained", "")):
        return {}
    from jaxcxr.evaluation.extractors import torchvision_nets

    readers = {
        "densenet121": torchvision_nets.DENSENET_121,
        "resnet18": torchvision_nets.RESNET_18,
        "resnet50": torchvision_nets.RESNET_50,
    }
    if (own := chosen.get("architecture")) not in readers:
        raise UserError(
            f"config.model.classifier.pretrained={file!r}: no file is of architecture {own!r}; leave it empty"
        )
    weights = readers[own].read(hub.find(file, of_weights()))
    return {f"{CLASSIFIER}.{name}": jnp.asarray(value) for name, value in weights.items()}


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """What a text encoder's config says of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokens.length(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
