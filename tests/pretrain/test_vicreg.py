"""VICReg's loss against its formula in loops and lightly's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pretrain.methods.vicreg import Config, heads, losses
from pretrain.networks import HeadSizes

B, D = 7, 4


def embeddings(views: int, samples: int = B, scale: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(views, samples, D, generator=generator, dtype=torch.float64) + 0.3


def variance_in_loops(view: Tensor) -> Tensor:
    """Equation 1, with the unbiased variance of main_vicreg.py."""
    terms = []
    for j in range(D):
        squares = [(view[b, j] - view[:, j].mean()) ** 2 for b in range(len(view))]
        terms.append((1 - (sum(squares) / (len(view) - 1) + 1e-4).sqrt()).clamp(min=0))
    return torch.stack(terms).mean()


def covariance_in_loops(view: Tensor) -> Tensor:
    """Equations 3 and 4."""
    total = view.new_zeros(())
    for i, j in itertools.permutations(range(D), 2):
        products = [(view[b, i] - view[:, i].mean()) * (view[b, j] - view[:, j].mean()) for b in range(len(view))]
        total = total + (sum(products) / (len(view) - 1)) ** 2
    return total / D


def in_loops(a: Tensor, b: Tensor, config: Config) -> Tensor:
    """Equation 6 as in main_vicreg.py, which halves the variance terms and divides the invariance by D."""
    invariance = sum((a[i, j] - b[i, j]) ** 2 for i in range(len(a)) for j in range(D)) / (len(a) * D)
    variance = (variance_in_loops(a) + variance_in_loops(b)) / 2
    covariance = covariance_in_loops(a) + covariance_in_loops(b)
    return config.invariance * invariance + config.variance * variance + config.covariance * covariance


@pytest.mark.parametrize("views", [2, 3])
def test_loss_is_the_formula_as_a_mean_over_pairs_of_views(views):
    p, config = embeddings(views), Config(views=views, invariance=2.0, variance=3.0, covariance=0.7)
    pairs = [in_loops(a, b, config) for a, b in itertools.combinations(p, 2)]
    total, parts = losses(p, p[:0], config)
    torch.testing.assert_close(total, torch.stack(pairs).mean())
    assert set(parts) == {"invariance", "variance", "covariance"}


def test_loss_is_lightlys():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").VICRegLoss()
    p = embeddings(2, samples=32)
    torch.testing.assert_close(losses(p, p[:0], Config())[0], loss(p[0], p[1]))


def test_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(lambda x: losses(x, x[:0], Config())[0], embeddings(2).requires_grad_())


def test_dimensions_that_spread_enough_have_no_variance_loss():
    assert float(losses(embeddings(2, samples=64, scale=3.0), embeddings(0), Config())[1]["variance"]) == 0.0


def test_collapsed_embeddings_have_a_finite_gradient():
    p = torch.ones(2, B, D, dtype=torch.float64, requires_grad=True)
    total, parts = losses(p, p[:0], Config())
    assert parts["variance"].item() == pytest.approx(0.99)  # 1 - sqrt(1e-4)
    assert bool(torch.isfinite(torch.autograd.grad(total, p)[0]).all())


def test_a_batch_of_one_image_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images"):
        losses(embeddings(2, samples=1), embeddings(0), Config())


def test_the_expander_has_three_layers():
    projector, predictor = heads(HeadSizes(features=8, hidden=16, outputs=D, norm="batch"), Config())
    assert predictor is None
    assert [layer.out_features for layer in projector if isinstance(layer, nn.Linear)] == [16, 16, D]
