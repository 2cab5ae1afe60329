"""Small runs for tests: phantoms, prepared, and configs of networks that compile in seconds."""

import functools
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.data.prepare import prepare
from jaxcxr.phantoms.tree import write_tree
from tests import pipelines

SIZE = 16
ROOT = Path(__file__).parents[2]


@functools.cache
def data(size: int = SIZE) -> Path:
    """A prepared set of phantoms of so many pixels a side, made once."""
    folder = Path(tempfile.mkdtemp(prefix="jaxcxr-data-"))
    config = configs.load(ROOT / "configs" / "phantom.py").data
    config.size, config.tokenizer_vocab = size, 600
    write_tree(folder / "tree", 40, 64)
    prepare(config, folder / "tree", folder / "data")
    return folder / "data"


@functools.cache
def worded(prompts: tuple[str, ...]) -> Path:
    """A prepared set of phantoms whose prompts are of these templates, made once."""
    folder = Path(tempfile.mkdtemp(prefix="jaxcxr-data-"))
    config = configs.load(ROOT / "configs" / "phantom.py").data
    config.size, config.tokenizer_vocab, config.prompts = SIZE, 600, prompts
    write_tree(folder / "tree", 12, 64)
    prepare(config, folder / "tree", folder / "data")
    return folder / "data"


def autoencoder(**changes) -> ConfigDict:
    config = configs.load(ROOT / "configs" / "base.py")
    with config.unlocked():
        config.model.vae = ConfigDict(pipelines.VAE)
    config.method = "autoencoder"
    config.trainable = r"vae\..*"
    return small(config, changes)


def diffusion(base: Path, **changes) -> ConfigDict:
    config = configs.load(ROOT / "configs" / "base.py")
    with config.unlocked():
        config.model.unet = ConfigDict(pipelines.UNET)
        config.model.text_encoder = ConfigDict(pipelines.TEXT)
        config.model.scheduler = ConfigDict(pipelines.SCHEDULER)
    config.model.base = str(base)
    config.model.measure_scaling_factor = True
    config.trainable = r"unet\..*|text_encoder\..*"
    return small(config, changes)


def small(config: ConfigDict, changes: dict) -> ConfigDict:
    """The config as that of a run of six steps on `data`."""
    config.data.path = str(data())
    config.data.size = SIZE
    config.data.views = ("PA", "AP")
    config.batch_size, config.steps = 4, 6
    config.log_every, config.eval_every, config.sample_every, config.checkpoint_every = 1, 0, 0, 3
    config.eval_batches = 1
    config.optimizer.warmup_steps = 2
    config.samples.per_prompt, config.samples.steps = 2, 2
    config.update_from_flattened_dict(changes)
    return config
