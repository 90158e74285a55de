"""Barlow Twins' loss against its formula in loops, lightly's and the authors' code."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pretrain.methods.barlow_twins import Config, correlation, heads, losses
from pretrain.networks import HeadSizes

B, D = 7, 4


def embeddings(views: int, samples: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(views, samples, D, generator=generator, dtype=torch.float64) + 0.3


def in_loops(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Equations 1 and 2, with the BatchNorm of main.py."""
    total = a.new_zeros(())
    for i, j in itertools.product(range(D), range(D)):
        x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
        c = (x * y).mean() / ((x.pow(2).mean() + 1e-5).sqrt() * (y.pow(2).mean() + 1e-5).sqrt())
        total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


@pytest.mark.parametrize("views", [2, 3])
def test_loss_is_the_formula_as_a_mean_over_pairs_of_views(views):
    p, config = embeddings(views), Config(views=views, lambda_off=0.3, scale=0.1)
    pairs = [in_loops(a, b, 0.3) for a, b in itertools.combinations(p, 2)]
    total, parts = losses(p, p[:0], config)
    torch.testing.assert_close(total, 0.1 * torch.stack(pairs).mean())
    torch.testing.assert_close(total, 0.1 * (parts["invariance"] + 0.3 * parts["redundancy"]))


def test_loss_is_lightlys():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").BarlowTwinsLoss(lambda_param=0.0051)
    p = embeddings(2, samples=32)
    torch.testing.assert_close(losses(p, p[:0], Config())[0], loss(p[0], p[1]))


def test_loss_is_that_of_the_authors_layers():
    """main.py: one BatchNorm without scale and shift standardises both views."""
    p, norm = embeddings(2, samples=32), nn.BatchNorm1d(D, affine=False).double()
    torch.testing.assert_close(correlation(p[0], p[1]), norm(p[0]).T @ norm(p[1]) / 32)


def test_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(lambda x: losses(x, x[:0], Config())[0], embeddings(2).requires_grad_())


def test_equal_decorrelated_views_have_no_loss():
    p = torch.linalg.qr(embeddings(1, samples=64)[0] - embeddings(1, samples=64)[0].mean(0)).Q
    total, _ = losses(torch.stack([p, p]) * 100, p[:0], Config())
    assert float(total) < 1e-6


def test_a_constant_dimension_has_a_finite_gradient():
    p = embeddings(2)
    p[:, :, 0] = 5.0
    total, _ = losses(p.requires_grad_(), p[:0], Config())
    assert bool(torch.isfinite(torch.autograd.grad(total, p)[0]).all())


def test_a_batch_of_one_image_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images"):
        losses(embeddings(2, samples=1), embeddings(0), Config())


def test_the_projector_has_three_layers_without_biases_before_a_norm():
    projector, predictor = heads(HeadSizes(features=8, hidden=16, outputs=D, norm="batch"), Config())
    layers = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert predictor is None and [layer.out_features for layer in layers] == [16, 16, D]
    assert [layer.bias is None for layer in layers] == [True, True, False]
