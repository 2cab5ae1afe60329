"""Structural similarity as a term of an autoencoder's loss."""

import jax
import numpy as np
import pytest

from jaxcxr.diffusion.objective import structural_similarity
from jaxcxr.evaluation.metrics.similarity import ssim
from jaxcxr.training.train import train
from jaxcxr.workdir import read_metrics
from tests.training import runs


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    first = rng.uniform(-1, 1, (3, 24, 17, 2)).astype(np.float32)
    return first, np.clip(first + 0.3 * rng.standard_normal(first.shape), -1, 1).astype(np.float32)


def test_it_is_the_metric(images):
    wanted = np.mean([ssim(*(each[..., channel] / 2 + 0.5 for each in images)) for channel in range(2)], axis=0)
    np.testing.assert_allclose(structural_similarity(*images), wanted, rtol=1e-5)
    np.testing.assert_allclose(structural_similarity(images[0], images[0]), 1, rtol=1e-5)


def test_its_gradient_is_that_of_pytorch_msssim(images):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("pytorch_msssim")
    first, second = (torch.tensor(each).permute(0, 3, 1, 2).requires_grad_() for each in images)
    theirs.ssim(first / 2 + 0.5, second / 2 + 0.5, data_range=1.0).backward()
    slope = jax.grad(lambda x: structural_similarity(x, images[1]).mean())(images[0])
    wanted = first.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(slope, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_run_learns_by_it(tmp_path):
    config = runs.autoencoder(steps=2, checkpoint_every=2)
    with config.unlocked():
        config.objective.perceptual.ssim = 0.5
    train(config, tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    total = row["reconstruction"] + config.objective.kl_weight * row["kl"] + 0.5 * row["ssim"]
    assert row["loss"] == pytest.approx(total, rel=1e-5)
