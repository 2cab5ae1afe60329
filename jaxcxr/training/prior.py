"""Prior preservation (Ruiz et al. 2023, "DreamBooth", arXiv 2208.12242): pictures of a class beside one's own few.

The class pictures are drawn by the untouched base. They are a folder of the run's mixture: of a weight w they are
w / (1 + w) of what is drawn, so the expected loss is (own + w class) / (1 + w), whatever weights the loss has besides.
"""

from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr import buckets, interop
from jaxcxr.data.prepare import prepare
from jaxcxr.data.settings import of_pictures
from jaxcxr.data.summary import Summary
from jaxcxr.diffusion import samplers
from jaxcxr.errors import UserError
from jaxcxr.manifest import Settings
from jaxcxr.methods import method
from jaxcxr.parallel.processes import on_first
from jaxcxr.sample import sample
from jaxcxr.training.feed import tokenizer_folder


def with_prior(config: ConfigDict) -> ConfigDict:
    """The config with the class pictures of `config.prior` in its mixture; they are drawn where there are none yet.

    Raises:
      UserError: there are none, and no prompt or base to draw them with; or they do not fit this run.
    """
    prior = config.prior
    entry = (prior.path, prior.weight)
    if not prior.path or entry in tuple(map(tuple, config.data.mixture)):
        return config
    if "image" not in method(config).reads:
        raise UserError(f"config.prior.path={prior.path}: config.method={config.method!r} reads no images")
    if config.data.cache:
        raise UserError(f"config.prior.path={prior.path}: has no cache; leave config.data.cache empty")
    if Summary.read(Path(prior.path)) is None:
        _draw(config)
    config = ConfigDict(config.to_dict())
    config.data.mixture = (*config.data.mixture, entry)
    return config.lock()


def _draw(config: ConfigDict) -> None:
    """Draws the class pictures with the base, and prepares them as the run's own were."""
    prior, folder = config.prior, Path(config.prior.path)
    pictures = folder.with_name(f"{folder.name}-pictures")
    if not prior.prompt:
        raise UserError(f"{folder}: holds no class pictures; prepare some, or set config.prior.prompt to draw them")
    if not config.model.base:
        raise UserError(f"config.prior.prompt={prior.prompt!r:.200}: wants config.model.base to draw with")
    checkpoint = interop.read(config.model.base)
    pipeline = interop.load_read(checkpoint, dtype=jnp.dtype(config.dtype))
    settings = Settings(
        checkpoint=config.model.base,
        checkpoint_step=interop.orbax.step_to_read(buckets.place(config.model.base)),
        sampler=config.samples.sampler or samplers.NAMES[pipeline.sampler().scheduler],
        steps=config.samples.steps,
        guidance=config.samples.guidance,
        size=config.data.size,
        seed=config.seed,
        dtype=config.dtype,
        gray=config.data.channels == 1,
    )
    rows = [{"prompt": prior.prompt}] * prior.count
    if not settings.already_done(pictures, rows):
        sample(pipeline, rows, settings, pictures, min(config.batch_size, prior.count))
    data = of_pictures(config.data.size, str(tokenizer_folder(config)), config.data.channels)
    on_first(lambda: prepare(data, pictures, folder))
