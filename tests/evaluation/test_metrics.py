"""Metrics of sets of features and pairs of images: against the packages that defined them, and against definitions."""

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import scipy.linalg

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import diversity, features, frechet, kernel, neighbours, similarity

RNG = np.random.default_rng(11)


def sets(n: int, m: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Features that overlap, with correlated columns."""
    mix = RNG.standard_normal((width, width)) / np.sqrt(width)
    return RNG.standard_normal((n, width)) @ mix, 0.8 * RNG.standard_normal((m, width)) @ mix + 0.3


@pytest.mark.parametrize(("n", "m", "width"), [(60, 50, 12), (40, 30, 64), (30, 200, 64), (200, 300, 64)])
def test_frechet_is_that_of_means_and_covariances(n, m, width):
    real, generated = sets(n, m, width)
    one, other = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = scipy.linalg.sqrtm(one + 1e-12 * np.eye(width)) if min(n, m) > width else None
    if root is not None:
        product = np.trace(scipy.linalg.sqrtm(root @ other @ root)).real
    else:
        product = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0)).sum()
    means = np.sum((real.mean(0) - generated.mean(0)) ** 2)
    wanted = means + np.trace(one) + np.trace(other) - 2 * product
    assert frechet.frechet(real, generated) == pytest.approx(wanted, rel=1e-6)
    assert frechet.frechet(real, real) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m", "width"), [(300, 200, 16), (60, 40, 30)])
def test_frechet_is_clean_fids(n, m, width, monkeypatch):
    pytest.importorskip("cleanfid", reason="clean-fid is not installed")
    for name in ("torchvision", "torchvision.transforms", "requests"):
        monkeypatch.setitem(sys.modules, name, MagicMock())  # which this function of it does not need
    from cleanfid.fid import frechet_distance

    real, generated = sets(n, m, width)
    moments = [(each.mean(axis=0), np.cov(each, rowvar=False)) for each in (real, generated)]
    theirs = frechet_distance(*moments[0], *moments[1])
    assert frechet.frechet(real, generated) == pytest.approx(theirs, rel=1e-6)


def test_frechet_of_endless_images_is_less_than_of_few():
    real, generated = RNG.standard_normal((4000, 32)), RNG.standard_normal((1000, 32))
    few = frechet.frechet(real, generated)
    endless = frechet.frechet_infinity(real, generated)
    assert endless < few / 3
    assert frechet.frechet_infinity(real, generated) == endless
    sizes = np.linspace(100, 1000, 15).astype(int)
    draw = np.random.default_rng(0)
    values = [frechet.frechet(real, generated[draw.permutation(1000)[:size]]) for size in sizes]
    assert endless == pytest.approx(np.polyfit(1 / sizes, values, 1)[1], rel=1e-9)


def test_kid_is_the_unbiased_estimate_of_its_definition(monkeypatch):
    real, generated = sets(31, 23, 7)

    def k(x, y):
        return (x @ y / 7 + 1) ** 3

    same = [np.mean([k(a, b) for i, a in enumerate(f) for j, b in enumerate(f) if i != j]) for f in (real, generated)]
    both = np.mean([k(a, b) for a in real for b in generated])
    wanted = sum(same) - 2 * both
    assert kernel.kid(real, generated) == pytest.approx(wanted, rel=1e-9)
    monkeypatch.setattr(features, "_AT_ONCE", 1000)  # a few rows at a time
    assert kernel.kid(real, generated) == pytest.approx(wanted, rel=1e-9)


def test_kid_of_subsets_is_torch_fidelitys():
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, generated = sets(400, 300, 16)
    theirs = kid_features_to_metric(
        torch.tensor(generated), torch.tensor(real), kid_subsets=20, kid_subset_size=100, rng_seed=2020, verbose=False
    )
    mean, deviation = kernel.kid_of_subsets(real, generated, subsets=20, size=100)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def balls(real, generated, k):
    """The four values, by their definitions, one image at a time."""

    def distance(a, b):
        return np.linalg.norm(a - b)

    def radius(rows):
        return [sorted(distance(a, b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    own, other = radius(real), radius(generated)
    inside = [[distance(r, g) < own[i] for i, r in enumerate(real)] for g in generated]
    precision = np.mean([any(row) for row in inside])
    recall = np.mean([any(distance(r, g) < other[j] for j, g in enumerate(generated)) for r in real])
    density = np.sum(inside) / (k * len(generated))
    coverage = np.mean([min(distance(r, g) for g in generated) < own[i] for i, r in enumerate(real)])
    return precision, recall, density, coverage


@pytest.mark.parametrize("at_once", [2**27, 500])
def test_neighbours_are_those_of_the_definitions(monkeypatch, at_once):
    monkeypatch.setattr(features, "_AT_ONCE", at_once)
    real, generated = sets(60, 45, 5)
    found = neighbours.prdc(real, generated, k=3)
    np.testing.assert_allclose(found, balls(real, generated, 3), rtol=1e-12)
    assert 0.2 < found.coverage < 1, "the sets overlap in part"


def test_neighbours_are_prdcs():
    prdc = pytest.importorskip("prdc", reason="prdc is not installed")
    real, generated = sets(300, 250, 16)
    theirs = prdc.compute_prdc(real, generated, nearest_k=5)
    np.testing.assert_allclose(neighbours.prdc(real, generated), [theirs[name] for name in neighbours.Prdc._fields])


def test_copies_are_not_authentic():
    real, fresh = RNG.standard_normal((200, 6)), 3 * RNG.standard_normal((50, 6))
    copies = real[:50] + 1e-4 * RNG.standard_normal((50, 6))
    assert neighbours.authenticity(real, copies) == 0
    assert neighbours.authenticity(real, np.concatenate([copies, fresh])) == pytest.approx(
        neighbours.authenticity(real, fresh) / 2
    )

    def authentic(g):
        distances = np.linalg.norm(real - g, axis=1)
        nearest = distances.argmin()
        others = np.linalg.norm(np.delete(real, nearest, 0) - real[nearest], axis=1)
        return others.min() < distances[nearest]

    assert neighbours.authenticity(real, fresh) == np.mean([authentic(g) for g in fresh])


def test_vendi_counts_what_differs():
    assert diversity.vendi(np.eye(7)) == pytest.approx(7)
    assert diversity.vendi(np.ones((5, 3))) == pytest.approx(1)
    assert diversity.vendi(np.repeat(np.eye(4), 3, axis=0)) == pytest.approx(4)
    rows = RNG.standard_normal((40, 9))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / 40)
    shares = shares[shares > 1e-12]
    assert diversity.vendi(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert diversity.vendi(rows[:5]) == pytest.approx(diversity.vendi(rows[:5] * 3), rel=1e-9)


def test_vendi_is_that_of_its_authors():
    vendi = pytest.importorskip("vendi_score.vendi", reason="vendi-score is not installed")
    for rows in (RNG.standard_normal((40, 9)), RNG.standard_normal((90, 30))):
        assert diversity.vendi(rows) == pytest.approx(vendi.score_dual(rows), rel=1e-6)


def pictures(side: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:side, :side] / side
    first = np.stack([0.5 + 0.4 * np.sin(9 * x + k) * np.cos(7 * y) for k in range(3)])
    return first, np.clip(first + 0.1 * RNG.standard_normal(first.shape), 0, 1)


@pytest.mark.parametrize("side", [192, 177])
def test_similarity_is_pytorch_msssims(side):
    msssim = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    import torch

    first, second = pictures(side)
    a, b = (torch.tensor(each)[:, None] for each in (first, second))
    # Its own window is rounded to float32.
    weights = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (weights / weights.sum())[None, None, None]
    theirs = msssim.ssim(a, b, data_range=1.0, size_average=False, win=window)
    np.testing.assert_allclose(similarity.ssim(first, second), theirs.numpy(), rtol=1e-6)
    theirs = msssim.ms_ssim(a, b, data_range=1.0, size_average=False, win=window)
    np.testing.assert_allclose(similarity.ms_ssim(first, second), theirs.numpy(), rtol=1e-6)


def test_similarity_is_that_of_its_definition():
    first, second = pictures(13)
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid**2) / (2 * 1.5**2))
    window /= window.sum()
    wanted = []
    for a, b in zip(first, second, strict=True):
        index = []
        for row in range(3):
            for column in range(3):
                x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                both = (window * (x - mx) * (y - my)).sum()
                index.append((2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
        wanted.append(np.mean(index))
    np.testing.assert_allclose(similarity.ssim(first, second), wanted, rtol=1e-9)


def test_images_of_one_prompt_are_compared_in_pairs():
    first, second = pictures(176)
    images = np.stack([first, second])
    pairs = [similarity.ms_ssim(images[:, a], images[:, b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert similarity.ms_ssim_within(images) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert similarity.ms_ssim_within(np.repeat(first[:, None], 2, axis=1)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet.frechet(np.zeros((1, 3)), np.zeros((5, 3))), "real features: are of 1 images.*needs 2"),
        (lambda: frechet.frechet(np.zeros((5, 3)), np.zeros((5, 4))), "real ones are 3 wide, the generated ones 4"),
        (lambda: frechet.frechet_infinity(np.zeros((9, 3)), np.zeros((19, 3))), "generated features: are of 19.*20"),
        (lambda: kernel.kid(np.zeros((5, 3, 2)), np.zeros((5, 3))), r"real features: are float64 of shape \(5, 3, 2\)"),
        (lambda: kernel.kid_of_subsets(np.zeros((999, 3)), np.zeros((1000, 3))), "real features: are of 999.*1000"),
        (lambda: neighbours.prdc(np.zeros((9, 3)), np.zeros((5, 3))), "generated features: are of 5 images.*needs 6"),
        (lambda: neighbours.authenticity(np.full((3, 2), np.nan), np.zeros((5, 2))), "row 0 has a number that is not"),
        (lambda: diversity.vendi(np.zeros((3, 2))), "none whose features are all zero"),
        (lambda: similarity.ms_ssim(np.zeros((1, 160, 200)), np.zeros((1, 160, 200))), "160 x 200 pixels; .*needs 161"),
        (lambda: similarity.ssim(np.zeros((1, 20, 20)), np.zeros((1, 20, 21))), "give two arrays"),
        (lambda: similarity.ms_ssim_within(np.zeros((3, 1, 200, 200))), "two or more of each prompt"),
    ],
)
def test_what_cannot_be_measured_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
