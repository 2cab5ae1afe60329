"""Pictures from Python: `pipe = jaxcxr.load("runs/x")`, then `pipe(["Small left pleural effusion."])`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcxr import arrays, interop, requests
from jaxcxr.data import tokens
from jaxcxr.diffusion import samplers
from jaxcxr.draw import Drawer, Kind, Options, batches, to_image
from jaxcxr.errors import UserError
from jaxcxr.interop import adapters
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.models.compute import usual_dtype
from jaxcxr.parallel import mesh as meshes
from jaxcxr.requests import Request


class Pipeline:
    """Draws pictures with a checkpoint; each shape and each choice of steps is compiled once.

    Attributes:
      networks: the checkpoint's networks and files.
    """

    def __init__(self, networks: StableDiffusion):
        self.networks = networks
        self._mesh = meshes.own_mesh()
        self._drawer = functools.lru_cache(maxsize=8)(lambda options: Drawer(networks, options, self._mesh))

    def __call__(
        self,
        prompt: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        *,
        steps: int = 50,
        seed: int = 0,
        sampler: str | None = None,
        guidance: float = 4.0,
        guidance_rescale: float = 0.0,
        negative_prompt: str | None = None,
        image: Any = None,
        mask: Any = None,
        edit_mask: Any = None,
        keep_mask: Any = None,
        strength: float | None = None,
        keep_outside: bool = False,
        colour: bool = False,
        control: Any = None,
        control_scale: float = 1.0,
        eta: float = 0.0,
        karras: bool = False,
        timestep_spacing: str | None = None,
        size: int | None = None,
        latents: np.ndarray | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
    ) -> list[Image.Image] | np.ndarray:
        """Draws a picture of each prompt, or edits one.

        Args:
          prompt: one or several: a text, or a row with the fields of a prompts file, such as `compose`, whose values
            go before the arguments of the same name. `prompt_embeds` may be an array, such as `encode` gives.
          steps: as the options of `jaxcxr sample` of the same names are these and those below.
          seed: picture i is picture i of a job of `jaxcxr sample` with this seed.
          sampler: the checkpoint's own if None.
          guidance: 1 is none.
          guidance_rescale: 0 to 1.
          negative_prompt: what to lead away from.
          image: to edit: a file's name, a Pillow image, or an array uint8 (H, W) or (H, W, 3).
          mask: as `image`, white where it is painted anew; arrays may be bool.
          edit_mask: as `mask`, in its place: where RadEdit may change the image.
          keep_mask: as `mask`: where RadEdit keeps it.
          strength: share of the steps that an edited picture is drawn with.
          control: as `image`: the condition image of a ControlNet, of the pictures' size.
          control_scale: what a ControlNet adds is multiplied by it.
          keep_outside: paste the image's own pixels outside the mask.
          colour: edit in colour.
          eta: of DDIM.
          karras: noise levels of Karras et al.
          timestep_spacing: linspace, leading or trailing.
          size: height and width in pixels; None for those that the U-Net was trained for.
          latents: the initial noise in place of the seed's, float32 (N, C, h, w) as diffusers takes it.
          batch_size: pictures at once, at most.
          output_type: "pil", or "np" for one array.

        Returns:
          Pillow images; or float32 (N, H, W, C) in [0, 1]. Edited pictures have one channel, or three with `colour`.

        Raises:
          UserError: an argument does not fit the checkpoint or another argument.
          FloatingPointError: a picture is not finite.
        """
        options = Options(
            sampler=sampler or samplers.NAMES[self.networks.sampler().scheduler],
            steps=steps,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            eta=eta,
            size=size,
            karras=karras,
            timestep_spacing=timestep_spacing,
            keep_outside=keep_outside,
            colour=colour,
            control_scale=control_scale,
        )
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type {output_type!r:.100}: may be 'pil' or 'np'")
        for name, value, least, most in (("seed", seed, 0, requests.MOST_SEED), ("batch_size", batch_size, 1, 2**16)):
            if not least <= value <= most:
                raise UserError(f"{name} {value}: may be from {least} to {most}")
        common = {"negative_prompt": negative_prompt, "strength": strength, "image": image, "mask": mask}
        common |= {"edit_mask": edit_mask, "keep_mask": keep_mask, "control": control}
        prompts = [prompt] if isinstance(prompt, str | Mapping) else list(prompt)
        asked = [_request(each, common, f"prompt {number}") for number, each in enumerate(prompts, 1)]
        drawer = self._drawer(dataclasses.replace(options, guidance=1.0)).with_guidance(guidance)
        pictures = self._draw(drawer, asked, seed, latents, batch_size)
        if output_type == "np":
            return pictures
        return [to_image(picture) for picture in pictures]

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """The text encoder's states of prompts, float32 (N, L, D): each is what a row's `prompt_embeds` may be."""
        tokenizer = self.networks.tokenizer
        ids = tokens.encode(tokenizer, list(prompts), tokens.length(tokenizer))
        return np.asarray(self.networks.text_encoder(jnp.asarray(ids)), np.float32)

    def _draw(
        self, drawer: Drawer, asked: list[Request], seed: int, latents: np.ndarray | None, batch_size: int
    ) -> np.ndarray:
        """float32 (N, H, W, C) in [0, 1]."""
        if not asked:
            raise UserError("prompt []: give one prompt or more")
        noise = None if latents is None else _noise(latents, (len(asked), *drawer.shape))
        for number, request in enumerate(asked, 1):
            drawer.check_files(request, f"prompt {number}")
        pictures: dict[int, np.ndarray] = {}
        most = -(-min(batch_size, len(asked)) // self._mesh.size) * self._mesh.size
        sizes: dict[Kind, int] = {}
        for batch in batches(map(drawer.kind, asked), most):
            # The first of a kind is the largest; the last is filled up to it, so that one program serves all.
            size = sizes.setdefault(drawer.kind(asked[batch[0]]), -(-len(batch) // self._mesh.size) * self._mesh.size)
            filled = [*batch, *[batch[-1]] * (size - len(batch))]
            places = [(seed, number) for number in filled]
            drawn = drawer.draw([asked[n] for n in filled], places, None if noise is None else noise[filled])
            pictures |= zip(batch, drawn, strict=False)
        for number, picture in sorted(pictures.items()):
            if not np.isfinite(picture).all():
                raise FloatingPointError(f"prompt {number + 1}: its picture is not finite; try float32, less guidance")
        channels = max(picture.shape[-1] for picture in pictures.values())
        return np.stack([np.repeat(p, channels // p.shape[-1], -1) for _, p in sorted(pictures.items())])


def load(
    path: str | Path,
    *,
    dtype: str | None = None,
    weights: str = "ema",
    adapter: str | Path | Sequence[str | Path] = (),
    adapter_weight: float | Sequence[float] = (),
    controlnet: str | Path | None = None,
) -> Pipeline:
    """Reads a checkpoint of any kind, ready to draw.

    Args:
      path: a workdir, a diffusers folder, `ORG/NAME` of the Hugging Face Hub, or whatever else `interop.read` knows.
      dtype: of the computation, float32 or bfloat16; None for float32 on CPUs and bfloat16 elsewhere.
      weights: of a workdir, ema or raw.
      adapter: one or several to merge into it, each a .safetensors file, a folder or a workdir.
      adapter_weight: their strengths, in the same order; 1 for those that have none.
      controlnet: a ControlNet to draw with: a folder, or the workdir of one.

    Raises:
      UserError: nothing readable at `path`, or an adapter does not fit.
    """
    dtype = usual_dtype(jax.default_backend()) if dtype is None else dtype
    for name, value, allowed in (("dtype", dtype, ("float32", "bfloat16")), ("weights", weights, ("ema", "raw"))):
        if value not in allowed:
            raise UserError(f"{name} {value!r:.100}: may be {' or '.join(allowed)}")
    paths = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    strengths = [adapter_weight] if isinstance(adapter_weight, int | float) else list(adapter_weight)
    checkpoint = adapters.merged(interop.read(path, ema=weights == "ema"), paths, strengths, ema=weights == "ema")
    if controlnet is not None:
        checkpoint = interop.with_controlnet(checkpoint, controlnet, ema=weights == "ema")
    return Pipeline(interop.load_read(checkpoint, dtype=jnp.dtype(dtype)))


def _request(prompt: str | Mapping[str, Any], common: Mapping[str, Any], where: str) -> Request:
    row: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
    row = {**common, **{key: value for key, value in row.items() if value is not None}}
    if row.get("count") not in (None, 1):
        raise UserError(f"{where}: count {row['count']}: is for `jaxcxr sample`; repeat the prompt")
    if isinstance(end := row.get("interpolate"), Mapping):
        row["interpolate"] = {**end, **_embeds(end)}
    row |= _embeds(row)
    return requests.parse(
        {
            key: _picture(value, where, key) if key in (*requests.PICTURES, "control") else value
            for key, value in row.items()
        },
        where,
    )


def _embeds(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Embeddings as `requests` takes them: a file's name or an array."""
    if (embeds := fields.get("prompt_embeds")) is None:
        return {}
    return {"prompt_embeds": str(embeds) if isinstance(embeds, str | Path) else np.asarray(embeds)}


def _picture(value: Any, where: str, key: str) -> Any:
    """What `requests` takes: a file's name or a Pillow image."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == bool:
        value = value.astype(np.uint8) * 255
    if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3))):
        said = f"{value.dtype} {value.shape}"
        raise UserError(f"{where}: {key} is {said}; give uint8 (H, W) or (H, W, 3), or a Pillow image")
    return Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)


def _noise(latents: np.ndarray, wanted: tuple[int, int, int, int]) -> np.ndarray:
    count, height, width, channels = wanted
    latents = arrays.require(np.asarray(latents), [(count, channels, height, width)], "N×C×H×W", "latents")
    return latents.transpose(0, 2, 3, 1)
