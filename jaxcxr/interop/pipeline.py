"""The three networks of a Stable Diffusion pipeline, with the files that go with them."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcxr.diffusion import samplers
from jaxcxr.diffusion.samplers import Settings
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import (
    CLASSIFIER,
    CONTROLNET,
    DISCRIMINATOR,
    LPIPS,
    PUBLISHED,
    SCHEDULER_CONFIG,
    TEACHER,
    TEACHER_TOKENIZER,
    UNPUBLISHED,
    network_class,
    network_config_of,
    parse_object,
    scheduler_class,
)
from jaxcxr.models.bert import BertModel
from jaxcxr.models.classifier import Classifier
from jaxcxr.models.clip import CLIPTextModel
from jaxcxr.models.compute import specialize
from jaxcxr.models.controlnet import ControlNetModel
from jaxcxr.models.discriminator import PatchDiscriminator
from jaxcxr.models.features.lpips import LpipsModel
from jaxcxr.models.named import abstract, initial_parameters, named_parameters, with_parameters
from jaxcxr.models.unet import UNet2DConditionModel
from jaxcxr.models.vae import AutoencoderKL


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """One pipeline, or a part of one.

    Attributes:
      networks: the networks at hand, by the names of their folders.
      files: every file of the diffusers folder but the weights, by its path in the folder.
    """

    networks: dict[str, Any]
    files: dict[str, bytes]

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser; a UserError says so if this checkpoint has none."""
        return self._network("unet")

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder; a UserError says so if this checkpoint has none."""
        return self._network("vae")

    @property
    def text_encoder(self) -> CLIPTextModel | BertModel:
        """The condition's encoder; a UserError says so if this checkpoint has none."""
        return self._network("text_encoder")

    @property
    def teacher(self) -> CLIPTextModel | BertModel:
        """The text encoder that another one learns from; a UserError says so if there is none."""
        return self._network(TEACHER)

    @property
    def classifier(self) -> Classifier:
        """The classifier of images; a UserError says so if there is none."""
        return self._network(CLASSIFIER)

    @property
    def controlnet(self) -> ControlNetModel:
        """What adds a condition image to the U-Net; a UserError says so if there is none."""
        return self._network(CONTROLNET)

    @property
    def lpips(self) -> LpipsModel:
        """The distance of images in an autoencoder's loss; a UserError says so if there is none."""
        return self._network(LPIPS)

    @property
    def discriminator(self) -> PatchDiscriminator:
        """The discriminator of an autoencoder's loss; a UserError says so if there is none."""
        return self._network(DISCRIMINATOR)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The noise schedule, from `scheduler/scheduler_config.json`."""
        return Schedule.from_config(self.scheduler_config())

    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's file, of the class that diffusers would load it as."""
        if SCHEDULER_CONFIG not in self.files:
            raise UserError(f"this checkpoint has no {SCHEDULER_CONFIG}; a whole pipeline is needed here")
        config = parse_object(SCHEDULER_CONFIG, self.files[SCHEDULER_CONFIG])
        return config | {"_class_name": scheduler_class(self.files)}

    def sampler(self, name: str = "", **changes: Any) -> Settings:
        """How the checkpoint is sampled: its scheduler's class and settings, as diffusers' pipeline takes them.

        Args:
          name: a key of `SAMPLERS`, in place of the file's class.
          changes: settings in place of the file's, such as `use_karras_sigmas`.

        Raises:
          UserError: a class or value is not supported.
        """
        settings = samplers.read(self.scheduler_config(), name, **changes)
        # StableDiffusionPipeline sets these two whatever the file says.
        fixed: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}
        return dataclasses.replace(settings, **{key: fixed[key] for key in fixed if hasattr(settings, key)})

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The `transformers` tokenizer made of the folder's `tokenizer/` files."""
        return self._tokenizer("tokenizer", "text_encoder")

    @functools.cached_property
    def teacher_tokenizer(self) -> Any:
        """The teacher's."""
        return self._tokenizer(TEACHER_TOKENIZER, TEACHER)

    def require_text_alone(self) -> None:
        """Raises UserError if the U-Net asks for class labels, which neither training nor sampling has."""
        if (classes := self.unet.config.num_class_embeds) is not None:
            raise UserError(
                f"unet/config.json: num_class_embeds={classes} asks for class labels, which there are none of; give a"
                " U-Net that is conditioned by text alone"
            )

    def parameters(self) -> dict[str, Any]:
        """Every parameter by its full name, e.g. `unet.conv_in.kernel`."""
        return {
            f"{network}.{name}": value
            for network, module in self.networks.items()
            for name, value in named_parameters(module).items()
        }

    def with_parameters(self, parameters: Mapping[str, Any]) -> "StableDiffusion":
        """The same pipeline on other weights; usable inside `jax.jit`."""
        networks = {
            network: with_parameters(module, _under(parameters, network)) for network, module in self.networks.items()
        }
        return StableDiffusion(networks, self.files)

    def specialized(self, *, attention: str, remat: str, platform: str) -> "StableDiffusion":
        """The same pipeline, computing as `models.specialize` says; UserErrors as there."""
        networks = {
            name: specialize(module, attention=attention, remat=remat, platform=platform)
            for name, module in self.networks.items()
        }
        return StableDiffusion(networks, self.files)

    def _tokenizer(self, part: str, encoder: str) -> Any:
        from jaxcxr.data import tokens

        files = {name: data for name, data in self.files.items() if name.startswith(f"{part}/")}
        if not files:
            raise UserError(f"this checkpoint has no {part}/ folder; a whole pipeline is needed here")
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), files)
            tokenizer = tokens.load(Path(folder) / part)
        if f"{encoder}/config.json" in self.files:
            rows = network_config_of(encoder, self.files[f"{encoder}/config.json"]).vocab_size
            if (last := max(tokenizer.get_vocab().values())) >= rows:
                raise UserError(f"{part}: has the id {last}, the {encoder}'s vocab_size is {rows}; copy both again")
        return tokenizer

    def _network(self, name: str) -> Any:
        if name not in self.networks:
            raise UserError(f"this checkpoint has no {name}; it has {', '.join(self.networks) or 'no network'}")
        return self.networks[name]


def from_files(
    files: Mapping[str, bytes], dtype: Any = jnp.float32, only: Iterable[str] | None = None
) -> StableDiffusion:
    """The pipeline that a folder's config files describe, its parameters shapes only (no memory)."""
    networks = {}
    for name in (*PUBLISHED, *UNPUBLISHED):
        file = files.get(f"{name}/config.json")
        if file is not None and (only is None or name in only):
            networks[name] = _shapes(name, file, dtype)
    return StableDiffusion(networks, dict(files))


@functools.lru_cache(maxsize=8)
def _shapes(name: str, config: bytes, dtype: Any) -> nnx.Module:
    """A network without values; tracing a large one takes seconds, and reading a checkpoint asks more than once."""
    architecture = parse_object(f"{name}/config.json", config)
    return abstract(network_class(name, architecture), architecture, dtype)


def initialize(
    pipeline: StableDiffusion, key: jax.Array, wanted: Callable[[str], bool] | None = None
) -> dict[str, jax.Array]:
    """Fresh random parameters for every network of `pipeline`, by full name, float32; of them those that are `wanted`.

    None of the networks is a teacher: it would have nothing to teach.
    """
    parameters: dict[str, jax.Array] = {}
    for name, module in pipeline.networks.items():
        own_key = jax.random.fold_in(key, (*PUBLISHED, DISCRIMINATOR).index(name))
        own = None if wanted is None else functools.partial(_under_name, wanted, name)
        fresh = initial_parameters(type(module), module.config, own_key, own)
        parameters |= {f"{name}.{leaf}": value for leaf, value in fresh.items()}
    return parameters


def _under_name(wanted: Callable[[str], bool], network: str, leaf: str) -> bool:
    return wanted(f"{network}.{leaf}")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes `files` (relative path -> content) under `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _under(parameters: Mapping[str, Any], network: str) -> dict[str, Any]:
    prefix = network + "."
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
