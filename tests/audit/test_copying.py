"""C_T against SciPy's test of Mann and Whitney, and the exchange of patients on sets with and without copies."""

import numpy as np
import pytest
from scipy import stats

from jaxcxr.audit.copying import c_t, cell_of, exchange, k_means, z_u


def scipys(generated, held_out):
    """As the authors' code has it: U of SciPy, its mean with a correction for continuity."""
    u = stats.mannwhitneyu(generated, held_out, alternative="less").statistic
    m, n = len(generated), len(held_out)
    return (u - (m * n / 2 - 0.5)) / np.sqrt(m * n * (m + n + 1) / 12)


@pytest.mark.parametrize("ties", [False, True])
def test_z_u_is_scipys(ties):
    draw = np.random.default_rng(0)
    generated, held_out = draw.gamma(2, 1, 70), draw.gamma(2.5, 1, 110)
    if ties:
        generated, held_out = generated.round(), held_out.round()
    assert z_u(generated, held_out) == pytest.approx(scipys(generated, held_out), rel=1e-12)
    assert z_u(generated / 10, held_out) < -8
    assert np.isnan(z_u([], held_out))


def test_c_t_is_the_mean_over_cells_by_their_shares_of_held_out_images():
    draw = np.random.default_rng(1)
    generated, held_out = draw.random(90), draw.random(120)
    cells, others = draw.integers(0, 4, 90), draw.integers(0, 4, 120)
    cells[cells == 3] = 2
    cells[:2] = 3  # too few to count
    wanted = [scipys(generated[cells == k], held_out[others == k]) for k in range(3)]
    weights = [(others == k).mean() for k in range(3)]
    assert c_t(generated, held_out, cells, others, least=0.1) == pytest.approx(np.average(wanted, weights=weights))


def test_c_t_sees_copies_in_a_cell_that_the_whole_hides():
    draw = np.random.default_rng(2)
    held_out, others = draw.random(400), np.repeat([0, 1], 200)
    generated, cells = draw.random(400), np.repeat([0, 1], 200)
    generated[cells == 0] *= 0.3
    generated[cells == 1] += 0.5
    assert c_t(generated, held_out, cells, others) < z_u(generated, held_out) + 3
    assert z_u(generated[cells == 0], held_out[others == 0]) < -5


def test_k_means_finds_clusters_that_are_apart():
    draw = np.random.default_rng(3)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    points = np.concatenate([centre + draw.normal(0, 0.5, (50, 2)) for centre in centres])
    found = k_means(points, 3)
    assert sorted(np.linalg.norm(found[:, None] - centres, axis=2).min(axis=0) < 0.3) == [True] * 3
    assert len(set(cell_of(points, found)[:50].tolist())) == 1
    assert len(k_means(np.zeros((5, 2)), 3)) == 1


def sides(seed, train=60, held_out=500, images=300, width=20, copied=0):
    """Similarities of images with two sets of one distribution; some images are copies of training images."""
    draw = np.random.default_rng(seed)
    ours, theirs = draw.standard_normal((train, width)), draw.standard_normal((held_out, width))
    drawn = 0.7 * draw.standard_normal((images, width))  # smoother than real ones
    drawn[:copied] = ours[draw.integers(train, size=copied)] + 0.1 * draw.standard_normal((copied, width))

    def near(reference):
        cosines = drawn @ reference.T / np.linalg.norm(reference, axis=1) / np.linalg.norm(drawn, axis=1)[:, None]
        return cosines.max(axis=1), cosines.argmax(axis=1)

    (a, match), (b, other) = near(ours), near(theirs)
    return a, b, match, other, [f"t{n}" for n in range(train)], [f"h{n}" for n in range(held_out)]


def test_copies_lie_nearer_to_training_images_than_chance_allows():
    found = exchange(*sides(0, copied=60))
    assert found.chance == pytest.approx(60 / 560)
    assert found.nearer >= 60
    assert found.p == pytest.approx(1e-4)


def test_without_copies_the_test_is_as_often_wrong_as_it_says():
    p = [exchange(*sides(seed, train=40, held_out=40, images=80)).p for seed in range(40)]
    assert np.mean(np.array(p) < 0.1) < 0.25
    assert 0.3 < np.mean(p) < 0.7


def test_many_images_near_one_training_image_are_no_proof():
    """A binomial test of 100 independent images would say p = 1e-30."""
    match = np.zeros(100, int)
    patients = [f"t{n}" for n in range(50)], [f"h{n}" for n in range(50)]
    found = exchange(np.ones(100), np.zeros(100), match, match, *patients)
    assert found.p == pytest.approx(0.5, abs=0.03)


def test_no_image_is_no_proof():
    assert exchange([], [], np.empty(0, int), np.empty(0, int), ["a"], ["b"]).p == 1
