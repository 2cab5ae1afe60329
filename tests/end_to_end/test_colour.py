"""Images in colour, from `prepare` to `sample`."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxcxr import config as configs
from jaxcxr.__main__ import main
from jaxcxr.cache import cache
from jaxcxr.data import images
from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError
from jaxcxr.models.vae import normalize
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

COLOUR = {"data.channels": 3, "eval_every": 3, "sample_every": 6}
SIDE = runs.SIZE


def drawn(number):
    """A disc of one colour on another, (40, 30, 3)."""
    draw = np.random.default_rng(number)
    rows, columns = np.mgrid[:40, :30]
    inside = (rows - 20) ** 2 + (columns - 15) ** 2 < draw.integers(40, 160)
    first, second = draw.integers(0, 256, (2, 3), np.uint8)
    return np.where(inside[..., None], first, second).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colour") / "source"
    folder.mkdir()
    rows = []
    for number in range(40):
        Image.fromarray(drawn(number)).save(folder / f"{number}.png")
        split = "validation" if number % 8 == 0 else "train"
        rows.append({"file_name": f"{number}.png", "text": f"A polyp, number {number}.", "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(**changes):
    config = configs.load(runs.ROOT / "configs" / "base.py").data
    config.update({"size": SIDE, "channels": 3, "views": (), "tokenizer_vocab": 600, "min_words": 0, **changes})
    return config


@pytest.fixture(scope="module")
def data(source):
    prepare(settings(), source, source.with_name("data"))
    return source.with_name("data")


@pytest.fixture(scope="module")
def autoencoder(data):
    vae = ConfigDict({**pipelines.VAE, "in_channels": 3, "out_channels": 3})
    config = runs.autoencoder(**COLOUR, **{"data.path": str(data), "data.views": (), "model.vae": vae})
    train(config, data.with_name("autoencoder"))
    return data.with_name("autoencoder")


@pytest.fixture(scope="module")
def diffusion(data, autoencoder):
    own = {**COLOUR, "data.path": str(data), "data.views": ()}
    config = runs.diffusion(autoencoder, **own, **{"data.cache": str(data.with_name("cache"))})
    cache(config, data.with_name("cache"))
    train(config, data.with_name("diffusion"))
    return data.with_name("diffusion")


def test_what_is_prepared_are_pillows_own_colours(source, data):
    records = open_split(data, "train", SIDE, 3)
    assert len(records) == 35
    for record in (records[0], records[20]):
        number = int(record["prompts"][0].decode().split()[-1].rstrip("."))
        wanted = np.zeros((SIDE, SIDE, 3), np.uint8)
        wanted[:, 2:14] = Image.fromarray(drawn(number)).resize((12, SIDE), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(images.decode_png(record["image"]), wanted)
        with Image.open(io.BytesIO(record["image"])) as seen:  # another reader of PNG
            assert seen.mode == "RGB"
            np.testing.assert_array_equal(seen, wanted)


def test_a_training_shows_its_sheets_in_colour(autoencoder, diffusion):
    for workdir in (autoencoder, diffusion):
        with Image.open(workdir / "samples" / "00000006.png") as sheet:
            assert sheet.mode == "RGB"
            channels = np.asarray(sheet).astype(int)
            assert np.ptp(channels, axis=-1).max() > 10
    with Image.open(autoencoder / "samples" / "00000006.png") as sheet:
        first = np.asarray(sheet)[:SIDE, :SIDE]
    records = open_split(autoencoder.with_name("data"), "validate")
    assert any(np.array_equal(first, images.decode_png(record["image"])) for record in records)


def test_pictures_and_edits_keep_their_colours(source, diffusion, tmp_path):
    argv = ["sample", "--checkpoint", str(diffusion), "--prompt", "A polyp.", "--steps", "2"]
    edit = [*argv, "--image", str(source / "1.png"), "--strength", "0.5"]
    for number, (options, mode) in enumerate([(argv, "RGB"), (edit, "L"), ([*edit, "--colour"], "RGB")]):
        assert main([*options, "--out", str(tmp_path / str(number))]) in (0, None)
        (file,) = (tmp_path / str(number)).glob("*.png")
        with Image.open(file) as picture:
            assert picture.mode == mode


def test_augmented_channels_move_together():
    import jax

    from jaxcxr.training.augment import _changed

    image = jnp.asarray(drawn(0))
    chosen = ConfigDict({"rotation": 10.0, "translation": 0.1, "brightness": 0.1})
    moved = np.asarray(_changed(image, jax.random.key(3), chosen))
    assert moved.shape == image.shape
    for channel in range(3):
        alone = np.asarray(_changed(image[..., channel : channel + 1], jax.random.key(3), chosen))[..., 0]
        np.testing.assert_array_equal(moved[..., channel], alone)


def test_gray_and_colour_are_not_mixed_up(source, data, autoencoder, tmp_path):
    with pytest.raises(UserError, match="data.channels is 2: give 1, gray, or 3, colour"):
        prepare(settings(channels=2), source, tmp_path / "two")
    with pytest.raises(UserError, match="data.intensity is 'equalize': is of gray images"):
        prepare(settings(intensity="equalize"), source, tmp_path / "equal")
    with pytest.raises(UserError, match="holds images of 3 channels, config.data.channels is 1; set it to 3"):
        train(runs.autoencoder(**{"data.path": str(data), "data.views": ()}), tmp_path / "gray")
    with pytest.raises(UserError, match="of 3 channels, this network takes 1; prepare them in gray"):
        train(runs.autoencoder(**COLOUR, **{"data.path": str(data), "data.views": ()}), tmp_path / "network")
    with pytest.raises(UserError, match="of 3 channels, this network takes 1"):
        normalize(np.zeros((1, 8, 8, 3), np.uint8), 1)
    gray = pipelines.write(tmp_path / "pipeline")
    argv = ["sample", "--checkpoint", str(gray), "--prompt", "x", "--image", str(source / "1.png"), "--colour"]
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main([*argv, "--out", str(tmp_path / "out")]))
    assert stopped.value.code == 2


def test_a_colour_picture_is_gray_where_gray_is_asked_for():
    colour = drawn(1)
    np.testing.assert_array_equal(images.gray(colour), Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(images.gray(colour[..., :1]), colour[..., 0])
