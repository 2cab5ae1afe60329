"""Draws requests: texts, pictures and noise become a batch, and each kind of batch has one program."""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxcxr import requests
from jaxcxr.data import images, tokens
from jaxcxr.diffusion.samplers import DDIM, DDPM, Sampler
from jaxcxr.errors import UserError
from jaxcxr.generate import (
    default_size,
    initial_noise,
    is_inpainting,
    latent_shape,
    make_generate,
    require_text,
    to_bytes,
    unconditional_states,
)
from jaxcxr.interop.config_files import CONTROLNET
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes
from jaxcxr.requests import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How pictures are drawn; fields as the options of `jaxcxr sample`.

    `sampler` is a key of `SAMPLERS`, empty for the checkpoint's own; `size` is None for that which the U-Net was
    trained for.
    """

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 4.0
    guidance_rescale: float = 0.0
    eta: float = 0.0
    size: int | None = None
    karras: bool = False
    timestep_spacing: str | None = None
    keep_outside: bool = False
    colour: bool = False
    control_scale: float = 1.0

    def check(self) -> None:
        """Raises UserError for the first number that is out of range."""
        for option, value, allowed, fits in (
            ("guidance", self.guidance, "0 or more", 0 <= self.guidance < math.inf),
            ("guidance-rescale", self.guidance_rescale, "from 0 to 1", 0 <= self.guidance_rescale <= 1),
            ("eta", self.eta, "from 0 to 1", 0 <= self.eta <= 1),
            ("control-scale", self.control_scale, "0 or more", 0 <= self.control_scale < math.inf),
        ):
            if not fits:
                raise UserError(f"--{option} {value}: may be {allowed}")


class Kind(NamedTuple):
    """What requests of one batch have in common: the shapes of its arrays, and the steps left out."""

    texts: int
    embeds: int
    mixed: bool
    shares_first: bool
    edits: str
    begin: int
    controlled: bool


class _OnDevices:
    """What all batches are drawn with, whatever their guidance: each is made when it is first used, and once."""

    def __init__(self, pipeline: StableDiffusion, mesh: Mesh):
        self._pipeline, self._mesh = pipeline, mesh

    @functools.cached_property
    def parameters(self) -> dict[str, jax.Array]:
        return jax.device_put(self._pipeline.parameters(), meshes.replicated(self._mesh))

    @functools.cached_property
    def unconditional(self) -> jax.Array:
        return jax.jit(functools.partial(unconditional_states, self._pipeline))(self.parameters)


class Drawer:
    """Draws batches of requests, compiled once for each kind and size of a batch.

    Args:
      pipeline: the networks.
      options: how.
      mesh: the devices.

    Raises:
      UserError: the options do not fit the checkpoint, or its configs are damaged.
    """

    def __init__(self, pipeline: StableDiffusion, options: Options, mesh: Mesh):
        options.check()
        require_text(pipeline)
        self.size = default_size(pipeline) if options.size is None else options.size
        self._inpaints, self._controls = is_inpainting(pipeline), CONTROLNET in pipeline.networks
        self.shape = latent_shape(pipeline, self.size, inpaints=self._inpaints)
        if options.colour and pipeline.vae.config.in_channels != 3:
            raise UserError("--colour: this autoencoder has no channels for colour; leave it out")
        self._pipeline, self._options, self._mesh = pipeline, options, mesh
        self._length = tokens.length(pipeline.tokenizer)
        self._states = self._length, pipeline.text_encoder.config.hidden_size
        self._sampler(0, inverts=False)
        self._programs: dict[tuple[int, bool], Any] = {}
        self._held = _OnDevices(pipeline, mesh)

    def with_guidance(self, guidance: float) -> "Drawer":
        """The same with another guidance, on which neither programs nor what is on the devices depend."""
        other = copy.copy(self)
        other._options = dataclasses.replace(self._options, guidance=guidance)
        other._options.check()
        return other

    def kind(self, request: Request) -> Kind:
        """Which requests can be drawn together with this one.

        Raises:
          UserError: the request does not fit the checkpoint or the options.
        """
        if self._inpaints and request.edits != "mask":
            latent_shape(self._pipeline, self.size)  # says why not
        if self._options.keep_outside and request.edits not in ("mask", "edit_mask"):
            raise UserError("--keep-outside: wants an image and a mask; give --image and --mask")
        if self._controls != (request.control is not None):
            raise UserError(
                "this checkpoint has a ControlNet: every picture wants a condition image; give --control"
                if self._controls
                else "--control: this checkpoint has no ControlNet; give --controlnet"
            )
        means = requests.conditions(request, self._options.guidance, self._options.guidance_rescale)
        begin = request.begin(self._options.steps)
        self._program(begin, request.edits == "edit_mask")
        counts = len(means.texts), len(means.embeds)
        return Kind(*counts, means.mix is not None, means.shares_first, request.edits, begin, self._controls)

    def check_files(self, request: Request, where: str) -> None:
        """Raises UserError if a file of a request cannot be read or does not fit, see `requests.check_files`."""
        requests.check_files(request, where, self._states)

    def draw(
        self, some: Sequence[Request], places: Sequence[tuple[int, int]], noise: np.ndarray | None = None
    ) -> np.ndarray:
        """The pictures of requests of one kind, float32 (B, H, W, C) in [0, 1].

        Those of edited images are gray unless `colour` is set.

        Args:
          some: B requests, a multiple of the mesh's devices.
          places: a seed and an index for each, which decide its noise, unless the request has a seed: (that, 0).
          noise: the initial noise in place of that, float32 (B, h, w, C).

        Raises:
          UserError: a picture cannot be read.
        """
        kind = self.kind(some[0])
        own = [place if one.seed is None else (one.seed, 0) for one, place in zip(some, places, strict=True)]
        if noise is None:
            noise = np.stack([initial_noise(seed, index, self.shape) for seed, index in own])
        batch = meshes.to_global({"noise": noise, **self._arrays(some, kind)}, self._mesh, len(some))
        first = self._held.unconditional if kind.shares_first else None
        generate = self._program(kind.begin, kind.edits == "edit_mask")
        pictures = np.asarray(generate(self._held.parameters, batch, picture_keys(own), first))
        return pictures.mean(axis=-1, keepdims=True) if kind.edits and not self._options.colour else pictures

    def count_cut(self, some: Sequence[Request]) -> int:
        """How many requests have a text that is longer than the text encoder takes."""
        texts = {text for one in some for text in one.texts()}
        cut = {text for text in texts if tokens.count_cut(self._pipeline.tokenizer, [text])}
        return sum(not cut.isdisjoint(one.texts()) for one in some)

    def _program(self, begin: int, inverts: bool) -> Any:
        if (begin, inverts) not in self._programs:
            sampler, options = self._sampler(begin, inverts), self._options
            generate = make_generate(
                self._pipeline,
                sampler,
                self._mesh,
                rescale=options.guidance_rescale,
                keep_outside=options.keep_outside,
                control_scale=options.control_scale,
            )
            self._programs[begin, inverts] = jax.jit(generate, compiler_options=compiler_options(self._mesh))
        return self._programs[begin, inverts]

    def _sampler(self, begin: int, inverts: bool) -> Sampler:
        options = self._options
        changes: dict[str, Any] = {"use_karras_sigmas": True} if options.karras else {}
        if options.timestep_spacing:
            changes["timestep_spacing"] = options.timestep_spacing
        described = self._pipeline.sampler(options.sampler, **changes)
        if inverts and not isinstance(described, DDIM | DDPM):
            raise UserError(f"--sampler {options.sampler}: an edit mask wants ddim or ddpm, whose steps are inverted")
        if isinstance(described, DDIM):
            return described.sampler(options.steps, begin, eta=options.eta or float(inverts))
        if options.eta:
            raise UserError(f"--eta {options.eta:g}: is for --sampler ddim; {options.sampler} has its own noise")
        return described.sampler(options.steps, begin)

    def _arrays(self, some: Sequence[Request], kind: Kind) -> dict[str, np.ndarray]:
        means = [requests.conditions(one, self._options.guidance, self._options.guidance_rescale) for one in some]
        arrays = {"weights": np.stack([each.weights for each in means])}
        if kind.texts:
            texts = [text for each in means for text in each.texts]
            ids = tokens.encode(self._pipeline.tokenizer, texts, self._length)
            arrays["ids"] = ids.reshape(len(some), kind.texts, self._length)
        if kind.embeds:
            given = [[requests.read_embeds(each, self._states) for each in one.embeds] for one in means]
            arrays["embeds"] = np.stack(given)
        if kind.mixed:
            arrays["mix"] = np.stack([each.mix for each in means if each.mix is not None])
        if kind.controlled:
            arrays["control"] = np.stack([self._condition(one.control) for one in some])
        if not kind.edits:
            return arrays
        return arrays | {name: np.stack(stack) for name, stack in self._pictures(some, kind.edits).items()}

    def _pictures(self, some: Sequence[Request], edits: str) -> dict[str, list[np.ndarray]]:
        """The images, uint8 (H, W, 1 or 3), and masks, uint8 (H, W, 1), of requests."""
        read: dict[int | str, np.ndarray] = {}  # the same one may be that of all

        def load(picture: Any, name: str) -> np.ndarray:
            key = f"{name}:{picture}" if isinstance(picture, str) else id(picture)
            if key not in read:
                read[key] = self._load(picture, name)
            return read[key]

        found = {"image": [load(one.image, "image") for one in some]}
        if edits in ("mask", "edit_mask"):
            found[edits] = [load(getattr(one, edits), edits) for one in some]
        if edits == "edit_mask":
            found["keep_mask"] = [
                1 - edited if one.keep_mask is None else load(one.keep_mask, "keep_mask")
                for one, edited in zip(some, found["edit_mask"], strict=True)
            ]
        return found

    def _condition(self, picture: Any) -> np.ndarray:
        """A condition image, uint8 (S, S, 3). It is not padded or stretched: what it says is of places in the picture.

        Raises:
          UserError: it cannot be read, or is of another size.
        """
        pixels = requests.read_picture(images.load_colour, picture, "control")
        if pixels.shape[:2] != (self.size, self.size):
            height, width = pixels.shape[:2]
            raise UserError(
                f"control {str(picture)[:200]}: is of {width} x {height} pixels, the pictures are of {self.size}; make"
                " it that size, or give --size"
            )
        return pixels

    def _load(self, picture: Any, name: str) -> np.ndarray:
        channels = 3 if name == "image" and self._options.colour else 1
        load = functools.partial(images.load_square, channels=channels)
        square = requests.read_picture(load, picture, name, self.size)
        if name == "image":
            return square
        mask = (square >= 128).astype(np.uint8)  # as diffusers rounds it
        if not mask.any():
            raise UserError(
                f"{name} {str(picture)[:200]}: is black throughout at {self.size} pixels; white is what counts"
            )
        return mask


def batches(kinds: Iterable[Kind], size: int) -> list[list[int]]:
    """The numbers of pictures of these kinds, those of a kind together, at most `size` to a batch."""
    of_kind: dict[Kind, list[int]] = {}
    for number, kind in enumerate(kinds):
        of_kind.setdefault(kind, []).append(number)
    return [numbers[first : first + size] for numbers in of_kind.values() for first in range(0, len(numbers), size)]


def picture_keys(places: Sequence[tuple[int, int]]) -> jax.Array:
    """A key for each picture, (B,), apart from those of its initial noise; `places` are seeds and indices."""
    seeds, indices = np.array(places, np.uint32).T
    keys = jax.vmap(jax.random.key)(seeds)
    return jax.vmap(jax.random.fold_in)(keys, indices + np.uint32(2**31))


def to_image(picture: np.ndarray, gray: bool = False) -> Image.Image:
    """A picture, float32 (H, W, C) in [0, 1], for Pillow: of one channel, if it has one or `gray` says so."""
    return images.picture_of(to_bytes(picture, 1 if gray else picture.shape[-1]))
