"""A checkpoint as every reader gives it and every writer takes it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import PUBLISHED, network_config_of
from jaxcxr.interop.pipeline import from_files
from jaxcxr.interop.tensors import Tensor, is_floating
from jaxcxr.models.named import count_blocks

TOGETHER = "do config.json and weights belong together?"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, unread.

    Attributes:
      files: every file of the diffusers folder but the weights, by its path in the folder.
      tensors: by full name and in the layout of this package, e.g. `unet.conv_in.kernel`, (H, W, in, out).
    """

    files: dict[str, bytes]
    tensors: dict[str, Tensor]

    @property
    def networks(self) -> list[str]:
        """The networks there are tensors of: unet, vae, text_encoder, classifier."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.tensors))

    def under(self, network: str) -> dict[str, Tensor]:
        """The tensors of one network, by their names in it."""
        prefix = f"{network}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def only(self, networks: Iterable[str] | None) -> "Checkpoint":
        """The checkpoint less the networks that are not among these; all of it if None."""
        if networks is None:
            return self
        dropped = set(PUBLISHED) - set(networks)
        return Checkpoint(
            {name: data for name, data in self.files.items() if name.split("/")[0] not in dropped},
            {name: tensor for name, tensor in self.tensors.items() if name.split(".")[0] not in dropped},
        )


def check(checkpoint: Checkpoint, where: str) -> Checkpoint:
    """The checkpoint, if its tensors are those that its configs describe; each is looked at for NaN when read.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not floating-point, with its name.
    """
    for network in checkpoint.networks:
        if (config := f"{network}/config.json") not in checkpoint.files:
            raise UserError(f"{where}: has tensors of {network}, but no {config}")
        check_blocks(network, checkpoint.files[config], checkpoint.under(network), where)
    check_parameters(from_files(checkpoint.files, only=checkpoint.networks).parameters(), checkpoint.tensors, where)
    for name, tensor in checkpoint.tensors.items():
        if not is_floating(tensor.dtype):
            raise UserError(f"{where}: parameter {name} is {tensor.dtype}; weights are floating-point numbers")
    tensors = {name: tensor.require_finite(f"{where}: parameter {name}") for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(checkpoint.files, tensors)


def check_blocks(network: str, config: bytes, names: Iterable[str], where: str) -> None:
    """Raises UserError unless the config describes as many blocks as there are tensors of.

    That is quick, where describing a network takes seconds.
    """
    described, found = network_config_of(network, config).blocks, count_blocks(names)
    if described != found:
        raise UserError(
            f"{where}: {network}/config.json describes {described} blocks, the tensors are of {found}; {TOGETHER}"
        )


def check_parameters(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raises a UserError naming the first parameter that is missing, unexpected or of another shape."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for problem, names in (("is missing", missing), ("is not one the config describes", unexpected)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{where}: parameter {names[0]} {problem}{more}; {TOGETHER}")
    for name, value in expected.items():
        if tuple(found[name].shape) != tuple(value.shape):
            raise UserError(
                f"{where}: parameter {name} has shape {tuple(found[name].shape)}, the config asks for"
                f" {tuple(value.shape)}; {TOGETHER}"
            )
