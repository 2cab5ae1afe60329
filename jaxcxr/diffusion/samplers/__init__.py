"""Samplers: a module each, of one scheduler class of diffusers. A new one is a module and a line here."""

from collections.abc import Mapping
from typing import Any

from jaxcxr import parsing
from jaxcxr.diffusion.samplers.base import Sampler, Settings
from jaxcxr.diffusion.samplers.ddim import DDIM
from jaxcxr.diffusion.samplers.ddpm import DDPM
from jaxcxr.diffusion.samplers.dpm_solver import DPMSolverMultistep
from jaxcxr.diffusion.samplers.euler import Euler
from jaxcxr.diffusion.samplers.euler_ancestral import EulerAncestral
from jaxcxr.diffusion.samplers.flow_euler import FlowMatchEuler
from jaxcxr.diffusion.samplers.heun import Heun
from jaxcxr.diffusion.samplers.lcm import LCM
from jaxcxr.diffusion.samplers.pndm import PNDM
from jaxcxr.diffusion.samplers.unipc import UniPC
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.diffusion.scheduler_classes import FILE, given
from jaxcxr.errors import UserError

__all__ = ["BY_CLASS", "DDIM", "NAMES", "SAMPLERS", "Sampler", "Settings", "changed", "read"]

SAMPLERS: dict[str, type[Settings]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "pndm": PNDM,
    "euler": Euler,
    "euler-ancestral": EulerAncestral,
    "heun": Heun,
    "dpm++": DPMSolverMultistep,
    "unipc": UniPC,
    "lcm": LCM,
    "flow-euler": FlowMatchEuler,
}
"""By the name that the command line takes."""

BY_CLASS: dict[str, type[Settings]] = {kind.scheduler: kind for kind in SAMPLERS.values()}
"""By the name of the class in diffusers."""

NAMES = {kind.scheduler: name for name, kind in SAMPLERS.items()}
"""The command line's names by those of diffusers' classes."""


def read(config: Mapping[str, Any], sampler: str = "", **changes: Any) -> Settings:
    """The settings in a `scheduler_config.json`.

    Keys that the class does not have are left aside, and those that are absent have its defaults, as in diffusers.

    Args:
      config: the file; its `_class_name` decides the class.
      sampler: a key of `SAMPLERS` in its place, as by diffusers' `from_config` of another class.
      changes: values in place of the file's, for keys that the class has.

    Raises:
      UserError: the class is not one of these, or a value is not supported.
    """
    name = config.get("_class_name", DDIM.scheduler)
    if sampler and sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler!r:.100} is not supported; it may be {', '.join(SAMPLERS)}")
    if not sampler and (not isinstance(name, str) or name not in BY_CLASS):
        raise UserError(
            f"{FILE}: _class_name {name!r:.100} cannot be sampled; it may be {', '.join(BY_CLASS)}, or sample with"
            f" another sampler: {', '.join(SAMPLERS)}"
        )
    kind = SAMPLERS[sampler] if sampler else BY_CLASS[name]
    values = {key: value for key, value in given(config).items() if key in known(kind)}
    if unknown := sorted(changes.keys() - known(kind)):
        raise UserError(f"{unknown[0]}: {kind.scheduler} has no such setting; it has {', '.join(sorted(known(kind)))}")
    return parsing.convert(values | changes, kind, FILE)


def known(kind: type[Settings]) -> set[str]:
    """The keys that a class honours."""
    return set(kind.__dataclass_fields__)


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A `scheduler_config.json` with some keys changed: of its own class, or of DDIM's where that has no such key.

    Args:
      config: the file; empty for DDIM's defaults.
      changes: the keys to change; `_class_name` names another class.

    Raises:
      UserError: a key is unknown, or its value is not allowed.
    """
    name = changes.get("_class_name", config.get("_class_name", DDIM.scheduler))
    kind = BY_CLASS.get(name) if isinstance(name, str) else None
    keys = changes.keys() - {"_class_name"}
    own = known(kind) if kind else {"prediction_type"}
    if config and keys <= own:
        result = {**given(config), **changes}
        Schedule.from_config(result)
        if kind:
            read(result)
        return result
    kind = kind if kind and keys <= own else DDIM
    if unknown := sorted(map(str, keys - known(kind))):
        raise UserError(f"{FILE}: unknown key {unknown[0]!r:.100}; it may be {', '.join(sorted(known(kind)))}")
    # A class without a key for clipping does not clip, which DDIM does by default.
    unclipped = {"clip_sample": False} if config and "clip_sample" in known(kind) else {}
    result = {**unclipped, **given(config), **changes, "_class_name": kind.scheduler}
    return read(result).to_config()
