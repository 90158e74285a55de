"""The losses against the paper's equations written out in loops, and their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pretraining import tiny_recipe
from torch import Tensor

from pretrain import train
from pretrain.losses import brownian_loss, centroid_loss, singular_value_loss, uniformity_loss
from pretrain.methods import byol, get, msbreg, names
from pretrain.networks import Outputs

K, B, D = 4, 6, 5


def embeddings(*shape: int, seed: int = 0, scale: float = 2.0, shift: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift


@pytest.fixture
def p() -> Tensor:
    return embeddings(K, B, D, seed=1).requires_grad_()


@pytest.fixture
def z() -> Tensor:
    return embeddings(K, B, D, seed=2)


@pytest.fixture
def noise() -> Tensor:
    return embeddings(B, D, seed=3, shift=0.0)


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum().sqrt()


def centroid_in_loops(p: Tensor, z: Tensor) -> Tensor:
    total = p.new_zeros(())
    for j in range(len(p)):
        for b in range(p.shape[1]):
            centroid = sum(unit(z[k, b]) for k in range(len(z))) / len(z)
            total = total + (unit(p[j, b]) - centroid).pow(2).sum()
    return total / (p.shape[0] * p.shape[1])


def brownian_in_loops(p: Tensor, noise: Tensor) -> Tensor:
    total = p.new_zeros(())
    for j in range(len(p)):
        for b in range(p.shape[1]):
            total = total + torch.dot(unit(noise[b]), unit(p[j, b]))
    return total / (p.shape[0] * p.shape[1])


def singular_by_svd(p: Tensor, normalize: bool = False) -> Tensor:
    """Eq. 5-7: sum of squared distances of the covariance's singular values from 1."""
    total = p.new_zeros(())
    for view in p:
        rows = torch.stack([unit(row) for row in view]) if normalize else view
        mean = sum(rows) / len(rows)
        covariance = sum(torch.outer(row - mean, row - mean) for row in rows) / (len(rows) - 1)
        total = total + (torch.linalg.svdvals(covariance) - 1).pow(2).sum()
    return total / len(p)


def cross_view_in_loops(p: Tensor, z: Tensor) -> Tensor:
    terms = [
        (unit(p[i, b]) - unit(z[j, b])).pow(2).sum()
        for i in range(len(p))
        for j in range(len(z))
        if i != j
        for b in range(p.shape[1])
    ]
    return sum(terms) / len(terms)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_centroid_loss_is_eq_3(p, z):
    torch.testing.assert_close(centroid_loss(p, z), centroid_in_loops(p, z))


def test_brownian_loss_is_eq_4(p, noise):
    torch.testing.assert_close(brownian_loss(p, noise), brownian_in_loops(p, noise))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("samples", [2, 4, 9])  # fewer than, about as many as, more than D
def test_singular_value_loss_is_eq_5_to_7_by_svd(samples, normalize):
    p = embeddings(3, samples, D, seed=samples)
    torch.testing.assert_close(singular_value_loss(p, normalize), singular_by_svd(p, normalize))


@pytest.mark.parametrize("views", [2, 3, 4])
def test_cross_view_loss_is_the_mean_over_different_views(views):
    p, z = embeddings(views, B, D, seed=1), embeddings(views, B, D, seed=2)
    torch.testing.assert_close(byol.cross_view_loss(p, z), cross_view_in_loops(p, z))


def test_gradients_by_finite_differences(p, z, noise):
    assert torch.autograd.gradcheck(lambda x: centroid_loss(x, z), p)
    assert torch.autograd.gradcheck(lambda x: brownian_loss(x, noise), p)
    assert torch.autograd.gradcheck(singular_value_loss, p)
    assert torch.autograd.gradcheck(lambda x: singular_value_loss(x, normalize=True), p)
    assert torch.autograd.gradcheck(lambda x: byol.cross_view_loss(x, z), p)


def test_centroid_gradient_equals_that_of_all_pairs(p, z):
    pairs = sum((F.normalize(p[j], dim=1) - F.normalize(z[k], dim=1)).pow(2).sum() for j in range(K) for k in range(K))
    pairs = pairs / (K * K * B)
    torch.testing.assert_close(gradient(centroid_loss(p, z), p), gradient(pairs, p))
    assert not torch.isclose(centroid_loss(p, z), pairs)  # the values differ, by the targets' spread


def test_centroid_loss_of_two_views_is_not_byols(z):
    p = embeddings(2, B, D, seed=1).requires_grad_()
    ours, byols = centroid_loss(p, z[:2]), byol.cross_view_loss(p, z[:2])
    assert (ours - byols).abs().item() > 1e-2
    assert float((gradient(ours, p) - gradient(byols, p)).norm()) > 1e-3


def test_targets_get_no_gradient(p, z):
    z.requires_grad_()
    (centroid_loss(p, z) + byol.cross_view_loss(p, z)).backward()
    assert z.grad is None
    assert float(p.grad.norm()) > 0


def test_inputs_are_normalised_inside(p, z, noise):
    scales = torch.rand(K, B, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(centroid_loss(p * scales, z), centroid_loss(p, z))
    torch.testing.assert_close(centroid_loss(p, z * scales), centroid_loss(p, z))
    torch.testing.assert_close(brownian_loss(p * scales, noise), brownian_loss(p, noise))
    torch.testing.assert_close(brownian_loss(p, noise * scales[0]), brownian_loss(p, noise))
    torch.testing.assert_close(byol.cross_view_loss(p * scales, z / scales), byol.cross_view_loss(p, z))
    torch.testing.assert_close(singular_value_loss(p * scales, normalize=True), singular_value_loss(p, normalize=True))
    assert not torch.isclose(singular_value_loss(p * 2), singular_value_loss(p))  # eq. 5 takes p raw


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("name", ["centroid", "brownian", "singular", "cross_view"])
def test_accumulating_over_views_is_exact(p, z, noise, name, group):
    compute = {
        "centroid": lambda x, first: centroid_loss(x, z),
        "brownian": lambda x, first: brownian_loss(x, noise),
        "singular": lambda x, first: singular_value_loss(x),
        "cross_view": lambda x, first: byol.cross_view_loss(x, z, first),
    }[name]
    whole = compute(p, 0)
    parts = sum(compute(p[first : first + group], first) * group / K for first in range(0, K, group))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient(parts, p), gradient(whole, p))


def test_cross_view_loss_needs_to_know_which_views_it_has(p, z):
    assert not torch.isclose(byol.cross_view_loss(p[2:], z, 2), byol.cross_view_loss(p[2:], z, 0))


def test_accumulating_over_samples_is_not_exact(p):
    whole = singular_value_loss(p)
    halves = (singular_value_loss(p[:, :3]) + singular_value_loss(p[:, 3:])) / 2
    assert (halves - whole).abs().item() > 0.1 * whole.item()


def test_singular_value_loss_is_accurate_in_collapse():
    """Raw second moments would have an error of 2e-5 here, their gradient of 2e-4."""
    p = (20 + 0.1 * torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    exact = p.detach().double().requires_grad_()
    loss, reference = singular_value_loss(p), singular_value_loss(exact)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / reference.item() - 1) < 5e-6
    found, expected = gradient(loss, p).double(), gradient(reference, exact)
    assert float((found - expected).norm() / expected.norm()) < 5e-6


def test_singular_value_loss_of_one_image_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images"):
        singular_value_loss(torch.randn(2, 1, 4))


def test_losses_are_float32_under_autocast(p, z, noise):
    p, z, noise = (x.detach().float() for x in (p, z, noise))
    functions = (
        lambda: centroid_loss(p, z),
        lambda: brownian_loss(p, noise),
        lambda: singular_value_loss(p),
        lambda: singular_value_loss(p, normalize=True),
    )
    for function in functions:
        expected = function()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_singular_value_loss_lifts_half_precision():
    p = embeddings(2, 64, D).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = singular_value_loss(p)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, singular_value_loss(p.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method, first_part", [(msbreg, centroid_loss), (byol, byol.cross_view_loss)])
def test_a_method_is_the_weighted_sum_of_its_parts(p, z, method, first_part):
    chosen = (
        f"method.name={method.METHOD.name}",
        f"method.views={len(p)}",
        f"optim.batch={p.shape[1]}",
        "run.float64=true",
    )
    config = tiny_recipe(Path("nowhere"), *chosen, "method.lambda_s=0.3", "method.lambda_b=0.7")
    total, parts = train.losses(Outputs(p, z), z, config, None, step=3, first=0)
    noise = train.global_noise(config, 3, p)
    expected = first_part(p, z) + 0.3 * singular_by_svd(p) + 0.7 * brownian_in_loops(p, noise)
    torch.testing.assert_close(total, expected)
    assert list(parts)[1:] == ["singular", "brownian"]
    config = tiny_recipe(Path("nowhere"), *chosen, "method.lambda_s=0", "method.lambda_b=0")
    alone, parts = train.losses(Outputs(p, z), z, config, None, step=3, first=0)
    torch.testing.assert_close(alone, first_part(p, z))
    assert len(parts) == 1


def test_every_method_of_a_recipe_exists():
    assert {"byol", "msbreg"} <= set(names())
    assert get("byol") is byol.METHOD and get("msbreg") is msbreg.METHOD


# ---------------------------------------------------------------- uniformity and multi-crop


def test_uniformity_loss_is_wang_and_isolas(p):
    expected = torch.zeros((), dtype=p.dtype)
    for view in p:
        pairs = [(unit(view[a]) - unit(view[b])).pow(2).sum() for a in range(B) for b in range(a)]
        expected = expected + torch.stack([torch.exp(-2 * pair) for pair in pairs]).mean().log() / K
    torch.testing.assert_close(uniformity_loss(p), expected)
    assert torch.autograd.gradcheck(uniformity_loss, p)
    with pytest.raises(ValueError, match="at least 2 images"):
        uniformity_loss(p[:, :1])


def test_byol_with_uniformity_adds_its_weighted_loss(p, z):
    config = byol.Config(views=K, lambda_u=0.3)
    total, parts = byol.losses(p, z, config)
    torch.testing.assert_close(total, byol.cross_view_loss(p, z) + 0.3 * uniformity_loss(p))
    assert set(parts) == {"cross_view", "uniformity"}


@pytest.mark.parametrize("target_views, keys", [("large", 2), ("all", K)])
def test_multi_crop_is_the_mean_over_pairs_of_different_views(p, z, target_views, keys):
    """MSBReg section 4.4, the sum divided by the number of pairs; the small views come last."""
    config = byol.Config(views=2, small_views=K - 2, target_views=target_views)
    assert (len(config.queries()), len(config.keys())) == (K, keys)
    z = z[:keys]
    pairs = [
        (unit(p[i, b]) - unit(z[j, b])).pow(2).sum() for i in range(K) for j in range(keys) if i != j for b in range(B)
    ]
    torch.testing.assert_close(byol.losses(p, z, config)[0], torch.stack(pairs).mean())
    parts = [byol.losses(p[i : i + 1], z, config, first=i)[0] for i in range(K)]
    torch.testing.assert_close(torch.stack(parts).mean(), torch.stack(pairs).mean())
