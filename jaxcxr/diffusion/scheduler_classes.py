"""The scheduler classes of diffusers that can be trained with: which keys decide the noise, with their defaults.

A class of diffusers reads its own keys of `scheduler_config.json` and leaves the others aside; so does `fields`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxcxr.errors import UserError

FILE = "scheduler_config.json"

_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_NOISE_K = _NOISE | {"beta_start": 0.00085, "beta_end": 0.012}
_NOISE_LCM = _NOISE_K | _ZERO_SNR | {"beta_schedule": "scaled_linear"}
# Flow matching is another noise process, with neither betas nor these prediction types.
_NO_FLOW = {"use_flow_sigmas": (False, None)}


@dataclasses.dataclass(frozen=True)
class SchedulerClass:
    """What a class of diffusers does with its config file.

    Attributes:
      noise: the keys that decide x_t and what is predicted, with the class's defaults.
      noise_only: keys that must have one of these values, or the noise is another.
    """

    noise: Mapping[str, Any]
    noise_only: Mapping[str, tuple] = dataclasses.field(default_factory=dict)


CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "PNDMScheduler": SchedulerClass(_NOISE),
    "DDPMScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "DDIMInverseScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "DDIMParallelScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "DDPMParallelScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "DEISMultistepScheduler": SchedulerClass(_NOISE, _NO_FLOW),
    "DPMSolverMultistepInverseScheduler": SchedulerClass(_NOISE, _NO_FLOW),
    "DPMSolverMultistepScheduler": SchedulerClass(_NOISE | _ZERO_SNR, _NO_FLOW),
    "DPMSolverSDEScheduler": SchedulerClass(_NOISE_K),
    "DPMSolverSinglestepScheduler": SchedulerClass(_NOISE, _NO_FLOW),
    "EulerAncestralDiscreteScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "EulerDiscreteScheduler": SchedulerClass(_NOISE | _ZERO_SNR),
    "HeunDiscreteScheduler": SchedulerClass(_NOISE_K),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(_NOISE_K),
    "KDPM2DiscreteScheduler": SchedulerClass(_NOISE_K),
    "LCMScheduler": SchedulerClass(_NOISE_LCM),
    "LMSDiscreteScheduler": SchedulerClass(_NOISE),
    "SASolverScheduler": SchedulerClass(_NOISE, _NO_FLOW),
    "TCDScheduler": SchedulerClass(_NOISE_LCM),
    "UniPCMultistepScheduler": SchedulerClass(_NOISE | _ZERO_SNR, _NO_FLOW),
}


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Schedule` that a `scheduler_config.json` describes, with its class's defaults, unchecked.

    Raises:
      UserError: its class or a key asks for another noise process, by name.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(
            f"{FILE}: _class_name {name!r:.100} has a noise process that is not supported; it may be"
            f" {', '.join(CLASSES)}"
        )
    cls, keys = CLASSES[name], given(config)
    if wrong := _wrong(keys, cls.noise_only):
        raise UserError(f"{FILE}: {wrong} is another noise process, which is not supported")
    return {key: keys.get(key, default) for key, default in cls.noise.items()}


def given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that diffusers would hand to the class: not those that it had filled in with defaults of another one."""
    unset = config.get("_use_default_values", ())
    return {key: value for key, value in config.items() if not (isinstance(unset, list | tuple) and key in unset)}


def _wrong(keys: Mapping[str, Any], only: Mapping[str, tuple]) -> str | None:
    for key, allowed in only.items():
        if key in keys and keys[key] not in allowed:
            return f"{key}={keys[key]!r:.100} (it may be {' or '.join(map(repr, allowed))})"
    return None
