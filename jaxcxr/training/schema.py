"""The types of a run config's keys, with what a key is where an older config does not have it."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from ml_collections import ConfigDict

from jaxcxr import parsing
from jaxcxr.errors import UserError, one_line
from jaxcxr.evaluation.settings import Settings as Evaluation

Word = Annotated[str, msgspec.Meta(max_length=100)]
Text = Annotated[str, msgspec.Meta(max_length=2**16)]
"""Of patterns and paths. A prompt may be longer."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """`config.mesh`."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Data:
    """Of `config.data` what training reads; what preparing reads is checked by `data.settings`."""

    size: int = 512
    channels: int = 1
    tokenizer: Text = ""
    path: Text = "runs/data"
    mixture: tuple[Any, ...] = ()
    rebalance: float = 0.0
    weights: Text = ""
    conditions: Text = ""
    cache: Text = ""
    stage: Text = ""


@dataclasses.dataclass(frozen=True)
class Model:
    """`config.model`; what describes a network is checked by `models.config`."""

    base: Text = ""
    text_encoder_base: Text = ""
    text_encoder_fit: Word = ""
    vae: dict[str, Any] = dataclasses.field(default_factory=dict)
    unet: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_encoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    classifier: dict[str, Any] = dataclasses.field(default_factory=dict)
    lpips: dict[str, Any] = dataclasses.field(default_factory=dict)
    discriminator: dict[str, Any] = dataclasses.field(default_factory=dict)
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    measure_scaling_factor: bool = False


@dataclasses.dataclass(frozen=True)
class Augment:
    """`config.augment`."""

    rotation: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0


@dataclasses.dataclass(frozen=True)
class Objective:
    """`config.objective`."""

    error: Word = "mse"
    caption_dropout: float = 0.1
    min_snr_gamma: float = 0.0
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    timestep_bias: Word = "none"
    timestep_bias_multiplier: float = 1.0
    timestep_bias_portion: float = 0.25
    kl_weight: float = 1e-6
    reduction: Word = "mean"
    perceptual: dict[str, float] = dataclasses.field(default_factory=dict)
    uncertain: Word = "negative"
    class_weights: Word = "none"


@dataclasses.dataclass(frozen=True)
class Distillation:
    """`config.distillation`; `methods.consistency` checks the values."""

    teacher_steps: int = 50
    guidance: tuple[float, ...] = (3.0, 7.0)


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """`config.inpainting`; `methods.inpainting` checks the names."""

    masks: tuple[str, ...] = ("box", "strokes", "lungs", "whole")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """`config.lora`; `adaptation.lora` checks the ranges."""

    rank: int = 0
    alpha: float = 0.0
    targets: Text = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)"
    dora: Text = ""


@dataclasses.dataclass(frozen=True)
class TextualInversion:
    """`config.textual_inversion`; `adaptation.textual_inversion` checks the values."""

    tokens: tuple[Any, ...] = ()
    initial: Word = "mean"
    max_norm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`config.optimizer`."""

    name: Word = "adamw"
    learning_rate: float = 1e-4
    rates: tuple[Any, ...] = ()
    schedule: Word = "constant"
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    mu_dtype: Word = "float32"
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Samples:
    """`config.samples`."""

    prompts: tuple[str, ...] = ("No acute cardiopulmonary process.",)
    per_prompt: int = 4
    steps: int = 50
    sampler: Word = ""
    guidance: float = 4.0


@dataclasses.dataclass(frozen=True)
class Prior:
    """`config.prior`."""

    path: Text = ""
    prompt: str = ""
    count: int = 100
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Stop:
    """`config.stopping`."""

    metric: Word = "validation_loss"
    patience: int = 0


@dataclasses.dataclass(frozen=True)
class Profile:
    """`config.profile`."""

    steps: int = 0
    after: int = 10


@dataclasses.dataclass(frozen=True)
class Run:
    """A run config; the keys are described in `configs/base.py`, whose defaults these are."""

    seed: int = 0
    steps: int = 1000
    epochs: float = 0.0
    batch_size: int = 32
    dtype: Word = "float32"
    method: Word = "diffusion"
    trainable: Text = r"unet\..*"
    lora: LoRA = dataclasses.field(default_factory=LoRA)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    inpainting: Inpainting = dataclasses.field(default_factory=Inpainting)
    textual_inversion: TextualInversion = dataclasses.field(default_factory=TextualInversion)
    ema_decay: float = 0.9999
    attention: Word = "auto"
    remat: Word = "none"
    accumulation: int = 1
    skip_nonfinite: int = 0
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    sharding: Word = "replicated"
    ema_sharding: Word = ""
    ema_memory: Word = "device"
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    prior: Prior = dataclasses.field(default_factory=Prior)
    augment: Augment = dataclasses.field(default_factory=Augment)
    objective: Objective = dataclasses.field(default_factory=Objective)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    samples: Samples = dataclasses.field(default_factory=Samples)
    loggers: tuple[str, ...] = ("tensorboard",)
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 4
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 2
    stopping: Stop = dataclasses.field(default_factory=Stop)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    profile: Profile = dataclasses.field(default_factory=Profile)


def check(config: ConfigDict) -> None:
    """Raises UserError for the first key of a run config that is absent, unknown or has a value of another type."""
    try:
        values = config.to_dict()
    except RecursionError as error:
        raise UserError("config: is nested too deeply") from error
    parsing.convert(values, Run, "config")
    known = dataclasses.asdict(Run())
    if absent := _missing(values, known):
        raise UserError(f"config.{absent}: is absent; a config has every key of configs/base.py")
    if unknown := _missing(known, {key: value for key, value in values.items() if key != "data"}):
        remedy = "config.method names it now" if unknown == "objective.name" else "configs/base.py has every key"
        raise UserError(f"config.{unknown}: no such key; {remedy}")


def completed(values: Mapping[str, Any], name: str) -> ConfigDict:
    """The config whose nested values are these, read from a file `name`, with the keys that it does not have yet.

    Raises:
      UserError: a value is of another type than its key's, or a key cannot be one of a config.
    """
    values = renamed(values)
    parsing.convert(values, Run, name)
    try:
        return ConfigDict(_filled(values, dataclasses.asdict(Run())))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{name}: is no config ({one_line(error)})") from error


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config under today's keys: `objective.name` is `method`."""
    objective = values.get("objective")
    if not isinstance(objective, Mapping) or "name" not in objective:
        return dict(values)
    rest = {key: value for key, value in objective.items() if key != "name"}
    return {**values, "objective": rest, "method": objective["name"]}


def _missing(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first key of `wanted`, dotted, that `values` do not have; what is empty in them may have any."""
    for key, value in wanted.items():
        if key not in values:
            return key
        if isinstance(value, dict) and values[key] and (inner := _missing(values[key], value)):
            return f"{key}.{inner}"
    return ""


def _filled(values: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    found = {**whole, **values}
    return {
        key: _filled(value, whole[key]) if isinstance(value, dict) and isinstance(whole.get(key), dict) else value
        for key, value in found.items()
    }
