"""The networks of an autoencoder's loss: LPIPS, whose weights are read from files, and a discriminator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import DISCRIMINATOR, LPIPS, parse_object
from jaxcxr.methods import networks

NAMES = (LPIPS, DISCRIMINATOR)


def described(config: ConfigDict, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The architectures of those that a run of `config` needs, by their keys in a pipeline.

    Args:
      config: of the run.
      files: of its pipeline; `vae/config.json` says how many channels an image has.

    Raises:
      UserError: `config.model.lpips` has no file of a network, or what it cannot have.
    """
    needed, found = networks(config), {}
    if LPIPS in needed:
        found[LPIPS] = {"net": _checked(config).get("net", "vgg"), "calibrated": _calibrated(config)}
    if DISCRIMINATOR in needed:
        vae = parse_object("vae/config.json", files["vae/config.json"])
        found[DISCRIMINATOR] = {"in_channels": vae.get("in_channels", 3), **config.model.discriminator.to_dict()}
    return found


def weights(config: ConfigDict) -> dict[str, jax.Array]:
    """The weights of LPIPS by full name, float32, from the files that `config.model.lpips` names.

    Raises:
      UserError: as `described`; a file is absent, cannot be read, or is of another network.
    """
    from jaxcxr.evaluation import perceptual

    chosen = _checked(config)
    heads = Path(chosen["heads"]) if chosen.get("heads") else None
    net = chosen.get("net", "vgg")
    found = perceptual.read(net, Path(chosen["backbone"]), heads, calibrated=_calibrated(config))
    return {f"{LPIPS}.{name}": jnp.asarray(value) for name, value in found.items()}


def _checked(config: ConfigDict) -> dict[str, Any]:
    chosen = config.model.lpips.to_dict()
    if unknown := sorted(set(chosen) - {"net", "backbone", "heads"}):
        raise UserError(f"config.model.lpips: has {unknown[0]!r}; it may have net, backbone and heads")
    if not chosen.get("backbone"):
        raise UserError(
            "config.model.lpips.backbone: is empty, and the loss has a term of it; give torchvision's file of the"
            " network: vgg16-397923af.pth, or with config.model.lpips.net=alex alexnet-owt-7be5be79.pth"
        )
    return chosen


def _calibrated(config: ConfigDict) -> bool:
    """Whether a term asks for the weights of channels."""
    return "lpips" in config.objective.perceptual
