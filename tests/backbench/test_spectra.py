"""Effective rank, RankMe, alpha-ReQ and LiDAR: spectra with known answers, and the formulas by numpy, scipy and sklearn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.decomposition import PCA

from backbench import spectra
from backbench.spectra import Undefined, alpha_req, effective_rank, lidar, rankme, singular_values


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed=0, *, centred=False):
    """Return (rows, columns) with orthonormal columns; with `centred`, each column sums to 0."""
    x = drawn(rows, columns, seed=seed)
    return torch.linalg.qr(x - x.mean(dim=0) if centred else x)[0]


def made(values, rows=200, width=120):
    """Return (rows, width) float64, centred, with these singular values and zeros."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left, right = orthonormal(rows, len(values), centred=True), orthonormal(width, len(values), seed=1)
    return left * values @ right.T


def power_law(alpha, count=110):
    """Return features whose covariance has the eigenvalues j^-alpha."""
    return made(torch.arange(1, count + 1, dtype=torch.float64) ** (-alpha / 2))


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (30, 30), (5000, 3)])
@pytest.mark.parametrize("centred", [True, False])
def test_singular_values_are_numpys(shape, centred):
    x = drawn(*shape) + 3 * drawn(shape[1], seed=5)
    rows = x - x.mean(dim=0) if centred else x
    expected = np.linalg.svd(rows.numpy(), compute_uv=False)
    found = singular_values(x, centred=centred)
    assert found.dtype == torch.float64 and len(found) == min(shape)
    assert found.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-6 * expected[0])


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, views = drawn(50, 20).float(), drawn(12, 4, 10).float()
    before = [singular_values(x, centred=True), torch.tensor(lidar(views))]
    monkeypatch.setattr(spectra, "_BLOCK", 7)
    torch.testing.assert_close(
        [singular_values(x, centred=True), torch.tensor(lidar(views))], before, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_flat_spectrum_has_the_rank_of_its_matrix(rank):
    x = made([7.0] * rank)
    assert effective_rank(x) == pytest.approx(rank, rel=1e-9)
    assert rankme(x) == pytest.approx(rank, rel=1e-3)
    assert torch.equal(singular_values(x, centred=True)[rank:], torch.zeros(120 - rank)), "rounding is no direction"
    shifted = x + drawn(120, seed=3)
    assert effective_rank(shifted) == pytest.approx(rank, rel=1e-6), "the mean is left out"


def test_effective_rank_of_known_singular_values():
    values = np.array([4.0, 2.0, 1.0, 1.0])
    points = np.concatenate([np.diag(values), -np.diag(values)])  # centred; singular values sqrt(2) times these
    p = values / values.sum()
    assert effective_rank(torch.from_numpy(points)) == pytest.approx(float(np.prod(p**-p)), rel=1e-9)


def test_ranks_are_scipys_entropies():
    x = drawn(60, 25) + 2
    values = np.linalg.svd((x - x.mean(dim=0)).numpy(), compute_uv=False)
    assert effective_rank(x) == pytest.approx(np.exp(scipy.stats.entropy(values)), rel=1e-9)
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    p = values / values.sum() + 1e-7
    assert rankme(x) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)


def test_rankme_sees_the_mean():
    x = made([1.0] * 8)
    assert rankme(x + 100) < 2 < 7 < effective_rank(x + 100)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha):
    assert alpha_req(power_law(alpha)) == pytest.approx(alpha, abs=1e-6)


def test_alpha_is_the_weighted_line_of_numpy():
    """The covariance's eigenvalues by sklearn; polyfit squares its weights."""
    x = drawn(300, 150) * torch.linspace(3, 0.1, 150, dtype=torch.float64)
    ranks = np.arange(spectra.FIRST, spectra.LAST + 1)
    eigenvalues = PCA(svd_solver="full").fit(x.numpy()).explained_variance_[ranks - 1]
    slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues), 1, w=ranks**-0.5)
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-9)
    plain, _ = np.polyfit(np.log(ranks), np.log(eigenvalues), 1)
    assert abs(slope - plain) > 0.01


@pytest.mark.parametrize(("x", "positive"), [(made([1.0] * 50), 50), (drawn(60, 120), 59), (torch.ones(200, 120), 0)])
def test_alpha_needs_a_hundred_eigenvalues(x, positive):
    with pytest.raises(Undefined, match=f"^{positive} eigenvalues are above rounding"):
        alpha_req(x)


def lidar_by_scipy(x_NQD, delta, epsilon=1e-8):
    """The generalised eigenvalues of the two covariance matrices, which are summed point by point."""
    n, q, d = x_NQD.shape
    means = x_NQD.mean(axis=1)
    within, between = delta * np.eye(d), np.zeros((d, d))
    for i in range(n):
        between += np.outer(means[i] - means.mean(axis=0), means[i] - means.mean(axis=0)) / (n - 1)
        for view in x_NQD[i]:
            within += np.outer(view - means[i], view - means[i]) / (n * (q - 1))
    values = scipy.linalg.eigh(between, within, eigvals_only=True).clip(min=0)
    p = values / values.sum() + epsilon
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("shape", [(30, 4, 8), (6, 3, 20), (2, 2, 5)])
@pytest.mark.parametrize("delta", [1e-4, 1.0])
def test_lidar_is_scipys_generalised_eigenvalues(shape, delta):
    x = drawn(*shape) + 2 * drawn(shape[0], 1, shape[2], seed=1)
    assert lidar(x, delta) == pytest.approx(lidar_by_scipy(x.numpy(), delta), rel=1e-6)


def seen(means_ND, spread):
    """Return (N, 2D, D): every image moved by +-spread along each axis, so views spread evenly."""
    steps = spread * torch.cat([torch.eye(means_ND.shape[1]), -torch.eye(means_ND.shape[1])]).double()
    return means_ND[:, None] + steps


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_lidar_of_images_that_spread_evenly_is_the_number_of_directions(rank):
    means = orthonormal(40, rank, centred=True) @ orthonormal(16, rank, seed=1).T
    assert lidar(seen(means, 0.1)) == pytest.approx(rank, rel=1e-4)


def test_lidar_leaves_out_directions_in_which_views_differ_more_than_images():
    means = orthonormal(40, 8, centred=True)
    x = seen(means, 0.01)
    x[:, :, :4] *= 1 + 1e4 * torch.tensor([1, -1]).repeat(8)[:, None]  # noise of the views
    assert lidar(x) == pytest.approx(4, rel=1e-2)
    assert effective_rank(x.flatten(0, 1)) == pytest.approx(4, rel=0.1), "it counts the others"
    quiet = effective_rank(x[:, :, 4:].flatten(0, 1))
    assert quiet == pytest.approx(4, rel=1e-2)


def test_lidar_without_enough_images_or_views():
    for shape in ((1, 5, 3), (5, 1, 3)):
        with pytest.raises(ValueError, match="two of each at least"):
            lidar(drawn(*shape))


def test_lidar_of_identical_images_is_one():
    assert lidar(drawn(1, 4, 6).expand(5, 4, 6)) == pytest.approx(1, abs=1e-5)


def test_a_delta_that_is_lost_in_rounding_is_said():
    with pytest.raises(Undefined, match="set delta higher"):
        lidar(1e12 * drawn(5, 3, 40))


@pytest.mark.parametrize("number", [effective_rank, rankme, alpha_req])
def test_rotation_and_scale_change_nothing(number):
    x = drawn(300, 150) * torch.linspace(3, 0.1, 150, dtype=torch.float64)
    rotation = orthonormal(150, 150, seed=9)
    assert number(7 * x @ rotation) == pytest.approx(number(x), rel=1e-9)
    assert number(x.flip(0)) == pytest.approx(number(x), rel=1e-9)


def test_lidar_depends_on_scale_through_delta_only():
    x = drawn(30, 4, 8) + drawn(30, 1, 8, seed=1)
    rotation = orthonormal(8, 8, seed=9)
    assert lidar(7 * x @ rotation, delta=49 * 0.01) == pytest.approx(lidar(x, delta=0.01), rel=1e-9)
    assert lidar(x / 7, delta=0.1) != pytest.approx(lidar(x, delta=0.1), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_rows_have_rank_one(dtype):
    x = torch.full((20, 8), 3.7, dtype=dtype)
    assert effective_rank(x) == 1
    assert rankme(x) == pytest.approx(1, abs=1e-4)
    zeros = torch.zeros(20, 8, dtype=dtype)
    assert effective_rank(zeros) == 1 and rankme(zeros) == pytest.approx(1, abs=1e-4)


def test_nearly_collapsed_float32_rows_keep_their_rank():
    x = (20 + 1e-3 * drawn(400, 16)).float()
    values = np.linalg.svd((x.double() - x.double().mean(dim=0)).numpy(), compute_uv=False)
    assert effective_rank(x) == pytest.approx(np.exp(scipy.stats.entropy(values)), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", [effective_rank, rankme, alpha_req, lidar])
def test_numbers_that_are_not_finite_are_refused(number, bad):
    x = drawn(8, 4, 3) if number is lidar else drawn(200, 120)
    x[1, 1] = bad
    with pytest.raises(Undefined, match="NaN or infinite"):
        number(x)
