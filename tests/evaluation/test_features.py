"""Features of a set: equal to the network's own, computed once, kept, resumed, and what cannot be read is counted."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors, features
from jaxcxr.evaluation.sets import open_set
from tests.evaluation import small


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "small", small.EXTRACTOR)
    return extractors.choose_all(["small"])[0]


def of_one(file, size=20):
    pixels = Image.open(file).convert("L")
    if pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small.Small(nnx.Rngs(0))(small.prepared(pixels)[None]))[0]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_they_are_the_networks_own_in_the_order_of_the_images(tmp_path, chosen, batch_size, monkeypatch):
    monkeypatch.setattr(features, "PER_SHARD", 4)
    folder = small.write_images(tmp_path / "images", 10, seed=1)
    found = features.extract(open_set(folder), chosen, 20, tmp_path / "kept", batch_size)
    assert found.readable.all()
    wanted = [of_one(folder / f"{number:03}.png") for number in range(10)]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)
    assert len({*found.pixels.tolist()}) == 10


def test_they_are_computed_once_and_what_is_missing_alone_again(tmp_path, chosen, monkeypatch):
    monkeypatch.setattr(features, "PER_SHARD", 4)
    images = open_set(small.write_images(tmp_path / "images", 10, seed=1))
    first = features.extract(images, chosen, 20, tmp_path / "kept")
    (one,) = (tmp_path / "kept").iterdir()
    files = sorted(one.glob("*.npz"))
    assert len(files) == 3
    read = []
    monkeypatch.setattr(features, "_prepared", lambda *args, do=features._prepared: read.append(args[2]) or do(*args))
    again = features.extract(images, chosen, 20, tmp_path / "kept")
    np.testing.assert_array_equal(again.values, first.values)
    assert not read
    files[1].unlink()
    again = features.extract(images, chosen, 20, tmp_path / "kept")
    np.testing.assert_array_equal(again.values, first.values)
    assert len(read) == 4


def test_another_size_weight_or_image_is_another_set_of_features(tmp_path, chosen):
    folder = small.write_images(tmp_path / "images", 3, seed=1)
    first = features.extract(open_set(folder), chosen, 20, tmp_path / "kept")
    features.extract(open_set(folder), chosen, 16, tmp_path / "kept")
    features.extract(open_set(folder), chosen._replace(digest="other"), 20, tmp_path / "kept")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "001.png")
    changed = features.extract(open_set(folder), chosen, 20, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 4
    assert (changed.values[1] == 0).all()
    np.testing.assert_array_equal(changed.values[[0, 2]], first.values[[0, 2]])


def test_images_of_other_sizes_depths_and_colours(tmp_path, chosen):
    folder = small.write_images(tmp_path / "images", 1, seed=1)
    gray = np.asarray(Image.open(folder / "000.png"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(folder / "red_green_blue.png")
    Image.fromarray(gray.repeat(2, 0).repeat(2, 1)).save(folder / "twice.png")
    found = features.extract(open_set(folder), chosen, 20, tmp_path / "kept")
    np.testing.assert_array_equal(found.values[1:3], found.values[[0, 0]])
    np.testing.assert_allclose(found.values[3], of_one(folder / "twice.png"), rtol=1e-5)
    assert found.pixels[0] == found.pixels[1] == found.pixels[2] != found.pixels[3]


def test_what_cannot_be_read_is_counted_and_nothing_else_changes(tmp_path, chosen):
    folder = small.write_images(tmp_path / "images", 4, seed=1)
    (folder / "001.png").write_bytes(b"no picture")
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(folder / "002.tif")
    found = features.extract(open_set(folder), chosen, 20, tmp_path / "kept")
    assert found.readable.tolist() == [True, False, True, False, True]
    assert np.isnan(found.values[~found.readable]).all()
    assert np.isfinite(found.values[found.readable]).all()
    for file in folder.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(UserError, match="images: none of its 5 images can be read by small/plain"):
        features.extract(open_set(folder), chosen, 20, tmp_path / "kept")


def test_a_damaged_file_of_features(tmp_path, chosen):
    images = open_set(small.write_images(tmp_path / "images", 2, seed=1))
    features.extract(images, chosen, 20, tmp_path / "kept")
    file = next((tmp_path / "kept").glob("*/*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00000\.npz: is damaged \(BadZipFile\); remove it and evaluate again"):
        features.extract(images, chosen, 20, tmp_path / "kept")


@pytest.mark.parametrize(
    ("wanted", "weights", "message"),
    [
        (["fid"], [], "extractor 'fid': may be efficientnet-lite0, inception"),
        (["inception/best"], [], "extractor inception/best: its preprocessing may be clean-fid, pytorch-fid"),
        (["inception"], [], "extractor inception: has no weights here; .*; --weights inception=FILE names them"),
        (["small"], ["fid=x"], "weights of 'fid': give NAME=FILE"),
        (["inception"], ["inception=nowhere"], "nowhere: no such file"),
    ],
)
def test_extractors_that_cannot_be_had(chosen, wanted, weights, message):
    with pytest.raises(UserError, match=message):
        extractors.choose_all(wanted, weights)


def test_weights_of_another_network(tmp_path):
    import torch

    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 5, 5)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="is of another network: Conv2d_1a_3x3.conv.weight has shape"):
        extractors.choose_all(["inception"], [f"inception={tmp_path / 'weights.pth'}"])
