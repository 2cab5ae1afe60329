import os
import subprocess
import sys

import numpy as np
import pytest

from jaxcxr import bases, interop
from jaxcxr.errors import UserError
from jaxcxr.evaluation import perceptual, reconstructions
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.metrics import BETTER
from jaxcxr.evaluation.metrics.similarity import ms_ssim, ssim
from jaxcxr.evaluation.reconstructions import measure, phantom_regions, reconstruct
from jaxcxr.phantoms.classifier import Seen, read, see
from jaxcxr.phantoms.generator import Finding
from jaxcxr.phantoms.studies import phantom
from jaxcxr.phantoms.truth import CLASSES
from tests.phantoms.classifiers import untrained

COUNT = 7
NO_FLOOR = (None, None, None)


@pytest.fixture(scope="module")
def drawn():
    return [phantom(5, index, 64) for index in range(COUNT)]


@pytest.fixture(scope="module")
def images(drawn):
    return np.stack([one.image for one in drawn])


@pytest.fixture(scope="module")
def reconstructed(images):
    return reconstruct(interop.load("phantom", only=("vae",)), images, batch_size=3)


def rows_of(measured):
    return {(row.metric, row.group): row for row in measured.rows}


def test_the_error_of_the_base_is_that_of_diffusers_autoencoder(drawn, images, reconstructed):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(bases.FOLDER / "phantom" / "vae").eval()
    with torch.no_grad():
        latents = vae.encode(torch.tensor(images[:, None] / np.float32(127.5) - 1)).latent_dist.mean
        decoded = (vae.decode(latents).sample[:, 0].numpy() / 2 + 0.5).clip(0, 1)
    theirs = np.round(255 * decoded).astype(int)
    assert np.abs(reconstructed - theirs).max() <= 1
    assert (reconstructed == theirs).mean() > 0.999

    squares = (images - theirs.astype(float)) ** 2
    found = rows_of(measure(images, reconstructed, np.arange(COUNT), regions=phantom_regions(drawn)))
    whole = np.sqrt(squares.mean(axis=(1, 2)))
    assert 1 < whole.mean() < 20
    assert found["rmse", ""].value == pytest.approx(whole.mean(), rel=1e-4)
    assert found["rmse_share", ""].value == pytest.approx(whole.mean() / 255, rel=1e-4)
    assert found["psnr", ""].value == pytest.approx(20 * np.log10(255 / whole).mean(), rel=1e-4)
    assert found["ssim", ""].value == pytest.approx(ssim(images, theirs, 255).mean(), rel=1e-4)
    assert found["ssim", ""].n == COUNT
    lungs = phantom_regions(drawn)["lungs"]
    inside = [np.sqrt(square[mask].mean()) for square, mask in zip(squares, lungs, strict=True)]
    assert found["rmse", "region=lungs"].value == pytest.approx(np.mean(inside), rel=1e-4)
    assert found["rmse", "region=lungs"].value != pytest.approx(whole.mean(), rel=0.01)


def test_batches_and_other_networks_change_nothing(images, reconstructed):
    whole = interop.load("phantom")
    np.testing.assert_array_equal(reconstruct(whole, images, batch_size=64), reconstructed)
    np.testing.assert_array_equal(reconstruct(whole, images[:1]), reconstructed[:1])


def test_a_batch_lies_on_all_devices_and_the_last_is_filled_up():
    program = """
import jax, numpy as np
from jaxcxr.evaluation.batches import InBatches
def compute(weights, rows, others):
    assert rows.shape == (4, 2), rows.shape
    return rows * weights["scale"] + others.sum(axis=-1, keepdims=True)
rows, others = np.arange(18.0).reshape(9, 2), np.arange(27.0).reshape(9, 3)
parts = list(InBatches(compute, {"scale": np.float32(3)}, 3)(rows, others))
assert len(jax.devices()) == 4 and [len(part) for part in parts] == [4, 4, 1], [len(part) for part in parts]
np.testing.assert_array_equal(np.concatenate(parts), rows * 3 + others.sum(axis=-1, keepdims=True))
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_regions_of_phantoms_lie_where_the_generator_draws():
    """The generator cuts what fills the chest off at lungs' edges: of a wrong pose masks would stick out."""
    findings = [
        [Finding("pneumothorax", "left", size="large")],
        [Finding("effusion", "bilateral", size="large"), Finding("cardiomegaly", size="severe")],
        [],
    ]
    drawn = [phantom(9, index, 128, kinds=()).with_findings(own) for index, own in enumerate(findings)]
    found = phantom_regions(drawn)
    assert list(found) == ["lungs", "heart", "effusion", "cardiomegaly", "pneumothorax"]
    lungs, heart = found["lungs"], found["heart"]
    np.testing.assert_array_equal(found["pneumothorax"][0], drawn[0].masks[0])
    assert not (found["pneumothorax"][0] & ~lungs[0]).any()
    assert (found["effusion"][1] & ~lungs[1]).sum() <= 0.01 * found["effusion"][1].sum()
    assert not found["effusion"][[0, 2]].any()
    assert not (lungs & heart).any()
    np.testing.assert_array_equal(heart[1], drawn[1].masks[1])
    for place in (0, 2):
        larger = drawn[place].with_findings([Finding("cardiomegaly", size="mild")]).masks[0]
        assert (heart[place] & ~larger).sum() <= 0.01 * heart[place].sum()
        assert 0.5 < heart[place].sum() / larger.sum() < 0.9
    assert (lungs.mean(axis=(1, 2)) > 0.15).all()
    assert (drawn[2].image[lungs[2]].mean() + 40) < drawn[2].image[heart[2]].mean()


def test_a_region_counts_where_it_is_and_intervals_are_by_patient(images):
    others = np.clip(images.astype(int) + np.arange(COUNT)[:, None, None], 0, 255).astype(np.uint8)
    region = np.zeros(images.shape, bool)
    region[[1, 4, 5], 20:30, 20:30] = True
    patients = np.array(["a", "b", "b", "c", "c", "d", "d"])
    found = measure(images, others, patients, regions={"middle": region, "nowhere": region & False})
    rows = rows_of(found)
    errors = np.sqrt(((images.astype(float) - others) ** 2).mean(axis=(1, 2)))
    low, high = bootstrap(errors, patients)
    assert low < high
    assert rows["rmse", ""] == pytest.approx(Row("", "rmse", "", "", errors.mean(), low, high, *NO_FLOOR, COUNT))
    middle = errors[[1, 4, 5]] * 0 + [1, 4, 5]
    low, high = bootstrap(middle, patients[[1, 4, 5]])
    assert rows["rmse", "region=middle"] == pytest.approx(
        Row("", "rmse", "", "region=middle", 10 / 3, low, high, *NO_FLOOR, 3)
    )
    assert not [group for _, group in rows if "nowhere" in group]
    assert rows["psnr", ""].value == np.inf, "the first image is not changed"
    assert found.worst["rmse"] == [6, 5, 4, 3, 2, 1, 0]
    assert found.worst["psnr"] == [6, 5, 4, 3, 2, 1, 0]
    assert measure(images, others, patients, worst=2).worst["rmse"] == [6, 5]
    alone = measure(images, others, ["one"] * COUNT).rows[0]
    assert (alone.low, alone.high, alone.n) == (None, None, COUNT)


def test_groups_are_of_their_images_alone(images):
    others = np.clip(images.astype(int) + np.arange(COUNT)[:, None, None], 0, 255).astype(np.uint8)
    label = np.arange(COUNT) > 4
    rows = rows_of(
        measure(images, others, np.arange(COUNT), groups={"label=edema": label, "label=none": label & False})
    )
    errors = np.sqrt(((images.astype(float) - others) ** 2).mean(axis=(1, 2)))
    assert rows["rmse", "label=edema"].value == pytest.approx(errors[5:].mean())
    assert rows["ssim", "label=edema"].value == pytest.approx(ssim(images[5:], others[5:], 255).mean())
    assert rows["rmse", "label=edema"].n == COUNT - 5
    assert not [group for _, group in rows if group == "label=none"]


def test_five_scales_want_more_than_160_pixels(images, reconstructed):
    small = measure(images, reconstructed, np.arange(COUNT))
    assert "ms_ssim" not in {row.metric for row in small.rows}
    assert small.left_out == ["ms_ssim: needs images of more than 160 pixels a side; these are of 64 x 64"]
    large = np.stack([phantom(5, index, 176).image for index in range(2)])
    noisy = np.clip(large + np.random.default_rng(0).normal(0, 20, large.shape), 0, 255).astype(np.uint8)
    found = measure(large, noisy, [0, 1])
    assert found.left_out == []
    row = rows_of(found)["ms_ssim", ""]
    wanted = ms_ssim(large, noisy, 255)
    assert row.value == pytest.approx(wanted.mean())
    assert (row.low, row.high) == pytest.approx((wanted.min(), wanted.max()))
    assert found.worst["ms_ssim"][0] == wanted.argmin()


def test_lpips_is_measured_where_weights_are_given(images, reconstructed, monkeypatch):
    distances = np.linspace(0.1, 0.7, COUNT, dtype=np.float32)
    monkeypatch.setattr(perceptual, "distances", lambda net, weights, *_: distances * weights)
    found = measure(images, reconstructed, np.arange(COUNT), lpips={"alex": 1, "vgg": 2})
    rows = rows_of(found)
    assert rows["lpips_alex", ""].value == pytest.approx(0.4)
    assert rows["lpips_vgg", ""].value == pytest.approx(0.8)
    assert found.worst["lpips_vgg"][0] == COUNT - 1
    assert {row.metric for row in found.rows} <= set(BETTER)


def test_a_finding_is_kept_where_the_classifier_sees_it_before_and_after(images, monkeypatch):
    before, after = np.zeros((2, COUNT, len(CLASSES)), bool)
    edema, nodule = CLASSES.index("edema"), CLASSES.index("left nodule")
    before[:4, edema], after[:3, edema] = True, True
    before[2:5, nodule], after[[2, 6], nodule] = True, True
    seen = iter([before, after] * 2)
    monkeypatch.setattr(reconstructions, "see", lambda *_: Seen(next(seen), np.zeros((COUNT, 6), int)))
    how = {"classifier": untrained(), "patients": np.arange(COUNT)}
    rows = rows_of(measure(images, images, **how))
    kept = {group: (row.value, row.n) for (metric, group), row in rows.items() if metric == "findings_kept"}
    assert kept == {"": (0.6, 5), "finding=edema": (0.75, 4), "finding=left nodule": (pytest.approx(1 / 3), 3)}
    there = before.copy()
    there[3:, nodule] = False
    rows = rows_of(measure(images, images, there=there, **how))
    kept = {group: (row.value, row.n) for (metric, group), row in rows.items() if metric == "findings_kept"}
    assert kept == {"": (0.75, 4), "finding=edema": (0.75, 4), "finding=left nodule": (1, 1)}


def test_the_base_keeps_most_findings(images, reconstructed):
    classifier = read("first")
    row = rows_of(measure(images, reconstructed, np.arange(COUNT), classifier=classifier))["findings_kept", ""]
    before, after = (see(classifier, each).present for each in (images, reconstructed))
    own = before.any(axis=1)
    assert row.value == pytest.approx((after | ~before).all(axis=1)[own].mean())
    assert row.n == own.sum() > 2
    assert row.value > 0.5


def test_what_cannot_be_measured_is_told(images, monkeypatch):
    base = interop.load("phantom", only=("vae",))
    broken = base.with_parameters({name: value * np.nan for name, value in base.parameters().items()})
    for message, call in (
        ("this checkpoint has no vae", lambda: reconstruct(interop.load("phantom", only=("unet",)), images)),
        (
            "images: are of 64 x 62 pixels; this autoencoder wants multiples of 4",
            lambda: reconstruct(base, images[..., 1:-1]),
        ),
        ("images: are float64", lambda: reconstruct(base, images / 255)),
        ("images: are uint8 of shape .0, 64, 64.", lambda: reconstruct(base, images[:0])),
        ("vae: its reconstruction of image 0 is not finite", lambda: reconstruct(broken, images[:2])),
        ("reconstructions: are uint8 of shape .6, 64, 64.", lambda: measure(images, images[1:], np.arange(COUNT))),
        ("patients of .6,.; give uint8 .7, 64, 64.", lambda: measure(images, images, np.arange(COUNT - 1))),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
