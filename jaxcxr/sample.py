"""A sampling job: prompts to PNGs with a manifest."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from jaxcxr.data import tokens
from jaxcxr.diffusion.sampling import ddim
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder
from jaxcxr.generate import initial_noise, latent_shape, make_generate, to_gray
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.parallel import mesh as meshes

MANIFEST = "manifest.jsonl"
NOTICE = "Synthetic image made by a generative model. Not a patient, not for diagnosis."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the images, besides the prompts; fields as the options of `jaxcxr sample`.

    `checkpoint_step` is how far a workdir was trained, None for a folder that does not say.
    """

    checkpoint: str
    checkpoint_step: int | None = None
    weights: str = "ema"
    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 4.0
    eta: float = 0.0
    seed: int = 0
    size: int | None = None
    dtype: str = "float32"
    latents: str | None = None
    gray: bool = False

    def already_done(self, out: Path, prompts: Sequence[Mapping[str, Any]]) -> bool:
        """Whether `out` is a finished job of these settings and prompts.

        Raises:
          UserError: it is a finished job of others.
        """
        if not (out / MANIFEST).is_file():
            return False
        rows = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
        wanted = [json.loads(json.dumps(self.row(index, prompt))) for index, prompt in enumerate(prompts)]
        if rows != wanted:
            raise UserError(f"{out}: holds samples {_differ(rows, wanted)}; name another --out")
        return True

    def row(self, index: int, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's line for image `index`; further fields of a prompt are kept."""
        name = {"file_name": f"{index:05d}.png"}  # also where the prompts are an earlier manifest, or of a folder
        return {**name, **prompt, **name, **dataclasses.asdict(self), "index": index, "synthetic": True}


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """Reads prompts: a text file with one a line, or JSON lines with a `prompt` field.

    Raises:
      UserError: the file cannot be read, has no prompt, or a line of it is not as it should be.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give a UTF-8 text file of prompts") from error
    if not lines:
        raise UserError(f"{file}: has no prompts")
    if file.suffix != ".jsonl":
        return [{"prompt": line.strip()} for line in lines]
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)
            assert isinstance(prompt["prompt"], str)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{file}: line {number} is not a JSON object with a `prompt` string") from error
        prompts.append(prompt)
    return prompts


def sample(
    pipeline: StableDiffusion,
    prompts: Sequence[Mapping[str, Any]],
    settings: Settings,
    out: Path,
    batch_size: int = 16,
) -> None:
    """Draws a picture of each prompt into the new folder `out`; all of them or nothing.

    Raises:
      UserError: the settings do not fit the checkpoint, or `out` exists or cannot be written.
    """
    _check(settings, batch_size)
    shape = latent_shape(pipeline, _trained_size(pipeline) if settings.size is None else settings.size)
    noise = _initial_noises(settings, len(prompts), shape)
    ids = tokens.encode(pipeline.tokenizer, [row["prompt"] for row in prompts], tokens.length(pipeline.tokenizer))
    mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    sampler = ddim(pipeline.schedule, settings.steps, settings.eta)
    if pipeline.schedule.notice:
        print(pipeline.schedule.notice)
    generate = jax.jit(make_generate(pipeline, sampler, settings.guidance, mesh))
    batch_size = -(-min(batch_size, len(prompts)) // mesh.size) * mesh.size
    parameters = jax.device_put(pipeline.parameters(), meshes.replicated(mesh))
    started = time.perf_counter()
    with new_folder(out) as folder, tqdm(total=len(prompts), desc="sample", unit="img") as bar:
        for first in range(0, len(prompts), batch_size):
            # A short last batch is filled up, so that one program serves them all.
            rows = np.minimum(np.arange(first, first + batch_size), len(prompts) - 1)
            batch = meshes.to_global({"ids": ids[rows], "noise": noise[rows]}, mesh, batch_size)
            pictures = np.asarray(generate(parameters, batch["ids"], batch["noise"], _keys(settings.seed, rows)))
            for index, picture in zip(range(first, len(prompts)), pictures, strict=False):
                _write(folder, settings.row(index, prompts[index]), picture, settings.gray)
                bar.update()
        manifest = (json.dumps(settings.row(index, prompt)) for index, prompt in enumerate(prompts))
        (folder / MANIFEST).write_text("".join(f"{line}\n" for line in manifest))
    rate = len(prompts) / (time.perf_counter() - started)
    print(f"{out}: {len(prompts)} images of {settings.steps} steps, {rate:.2f} images/s")


def _differ(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> str:
    step = "checkpoint_step"
    if [{**row, step: None} for row in rows] != [{**row, step: None} for row in wanted]:
        return "of other prompts or settings"
    return f"of step {rows[0].get(step)} of {rows[0]['checkpoint']}, which is at {wanted[0][step]}"


def _check(settings: Settings, batch_size: int) -> None:
    for option, value, allowed, fits in (
        ("batch-size", batch_size, "1 or more", batch_size >= 1),
        ("guidance", settings.guidance, "0 or more", 0 <= settings.guidance < math.inf),
        ("eta", settings.eta, "from 0 to 1", 0 <= settings.eta <= 1),
        ("seed", settings.seed, "from 0 to 2^32 - 1", 0 <= settings.seed < 2**32),
    ):
        if not fits:
            raise UserError(f"--{option} {value}: may be {allowed}")


def _write(folder: Path, row: Mapping[str, Any], picture: np.ndarray, gray: bool) -> None:
    """Writes one picture, float32 (H, W, C) in [0, 1], with its manifest line in the PNG's metadata."""
    if gray or picture.shape[-1] == 1:
        image = Image.fromarray(to_gray(picture[None])[0])
    else:
        image = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    about = PngInfo()
    about.add_text("Description", NOTICE)
    about.add_itxt("jaxcxr", json.dumps(row))
    image.save(folder / row["file_name"], pnginfo=about)


def _trained_size(pipeline: StableDiffusion) -> int:
    latent_size = pipeline.unet.config.sample_size
    if not isinstance(latent_size, int):
        raise UserError("unet/config.json: has no sample_size that is a number; give --size")
    return latent_size * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def _keys(seed: int, indices: np.ndarray) -> jax.Array:
    """A key for each of these pictures of a job, (B,), apart from those of their initial noise."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices.astype(np.uint32) + np.uint32(2**31))


def _initial_noises(settings: Settings, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """float32 (count, h, w, C)."""
    if settings.latents is None:
        return np.stack([initial_noise(settings.seed, index, shape) for index in range(count)])
    try:
        latents = np.load(settings.latents, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{settings.latents}: cannot be read as .npy ({error})") from error
    wanted = (count, shape[2], shape[0], shape[1])
    if latents.dtype != np.float32 or latents.shape != wanted:
        raise UserError(
            f"{settings.latents}: is {latents.dtype} {latents.shape}; float32 {wanted} (N×C×H×W) is wanted here"
        )
    return latents.transpose(0, 2, 3, 1)
