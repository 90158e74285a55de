"""W-MSE: whitened features, the loss against its formula in loops and lightly's, the random divisions, and errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from pretraining import tiny_recipe
from torch import Tensor

from backbench.errors import BackbenchError, ConfigError
from pretrain.methods.wmse import Config, Divisions, losses, whiten
from pretrain.train import build_all

B, D = 12, 3


def embeddings(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.3


def whitened_in_loops(rows: Tensor) -> Tensor:
    """Section 4.1: `W (v - mu)` with `W^T W` the inverse of the covariance, W lower triangular."""
    mean = sum(rows) / len(rows)
    covariance = sum(torch.outer(row - mean, row - mean) for row in rows) / (len(rows) - 1)
    factor = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return torch.stack([factor @ (row - mean) for row in rows])


def in_loops(p: Tensor, divisions: Tensor) -> Tensor:
    """Equation 6 over all pairs of views, sub-batch by sub-batch."""
    terms = []
    for rows in divisions.flatten(0, 1):
        views = [whitened_in_loops(view[rows]) for view in p]
        for a, b in itertools.combinations(views, 2):
            terms += [((x / x.norm() - y / y.norm()) ** 2).sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("shape", [(B, D), (2, 3, B, D)])
def test_whitened_features_have_mean_0_and_the_identity_as_covariance(shape):
    white = whiten(embeddings(*shape))
    covariance = white.mT @ white / (B - 1)
    torch.testing.assert_close(white.mean(dim=-2), torch.zeros_like(white.mean(dim=-2)))
    torch.testing.assert_close(covariance, torch.eye(D, dtype=white.dtype).expand_as(covariance))


def test_epsilon_moves_the_covariance_towards_the_identity():
    x = embeddings(B, D)
    shrunk = 0.75 * torch.cov(x.T) + 0.25 * torch.eye(D)
    white = whiten(x, epsilon=0.25)
    factor = torch.linalg.cholesky(shrunk)
    torch.testing.assert_close(factor @ white.T, (x - x.mean(0)).T)


@pytest.mark.parametrize("views, size, iterations", [(2, 0, 1), (2, 6, 3), (4, 4, 2)])
def test_loss_is_the_formula_over_pairs_of_views_and_sub_batches(views, size, iterations):
    p, memory = embeddings(views, B, D), Divisions()
    config = Config(views=views, whitening_size=size, iterations=iterations)
    total, _ = losses(p, p[:0], config, memory=memory)
    torch.testing.assert_close(total, in_loops(p, memory.draw(B, size or B, iterations)))


@pytest.mark.parametrize("views", [2, 4])
def test_loss_is_lightlys(views):
    """A whole batch at a time, since lightly draws its permutations from torch's generator."""
    module = pytest.importorskip("lightly.loss.wmse_loss", reason="lightly is not installed")
    loss = module.WMSELoss(embedding_dim=D, w_size=B, num_samples=views, track_running_stats=False)
    p = embeddings(views, B, D)
    found, _ = losses(p.float(), p[:0], Config(views=views), memory=Divisions())
    torch.testing.assert_close(found, loss(p.float().flatten(0, 1)), rtol=1e-4, atol=1e-5)


def test_gradient_by_finite_differences():
    config, memory = Config(whitening_size=6, iterations=2), Divisions()
    p = embeddings(2, B, D).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses(x, x[:0], config, memory=memory)[0], p)


def test_divisions_depend_on_the_runs_seed_and_the_step_alone():
    config = tiny_recipe(Path("nowhere"), "method.name=wmse", "run.seed=3")
    first, second = (build_all(config, torch.device("cpu")).online.memory for _ in range(2))
    assert isinstance(first, Divisions) and isinstance(second, Divisions)
    drawn = []
    for step in (0, 1):
        torch.rand(step + 1)  # what others draw does not matter
        first.begin(step, 0.0), second.begin(step, 0.0)
        drawn.append(first.draw(B, 4, 2))
        assert torch.equal(drawn[-1], second.draw(B, 4, 2))
        assert [sorted(one) for one in drawn[-1].flatten(1).tolist()] == [list(range(B))] * 2
    other = build_all(tiny_recipe(Path("nowhere"), "method.name=wmse", "run.seed=4"), torch.device("cpu")).online.memory
    assert isinstance(other, Divisions)
    for one, another in itertools.combinations([*drawn[0], *drawn[1], *other.draw(B, 4, 2)], 2):
        assert not torch.equal(one, another)


def test_sub_batches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"optim.batch 12 is not a multiple of method.whitening_size 5"):
        losses(embeddings(2, B, D), embeddings(0), Config(whitening_size=5), memory=Divisions())


def test_too_few_images_for_the_dimensions_are_refused_unless_epsilon_helps():
    p = embeddings(2, B, D)
    with pytest.raises(
        ConfigError, match=r"cannot whiten 3 dimensions with 3 images: set method.whitening_size .* 6 or"
    ):
        losses(p, p[:0], Config(whitening_size=3), memory=Divisions())
    total, _ = losses(p, p[:0], Config(whitening_size=3, epsilon=0.1), memory=Divisions())
    assert bool(torch.isfinite(total))


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_embeddings_that_cannot_be_whitened_are_an_error_that_says_what_to_do(value):
    p = torch.full((2, B, D), value)
    with pytest.raises(
        BackbenchError, match=r"collapsed or are not finite; lower optim.base_lr, .* method.epsilon=0.01"
    ):
        losses(p, p[:0], Config(), memory=Divisions())
