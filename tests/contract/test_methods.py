"""Every pretraining method: a finite scalar that teaches the predictions and never the targets, exact over views."""

from __future__ import annotations

import pytest
import torch

from pretrain import methods
from pretrain.config import MethodConfig, PretrainConfig, load

K, B, D = 4, 12, 8


@pytest.fixture
def p() -> torch.Tensor:
    return torch.randn(K, B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(K, B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", methods.names())
def test_loss_is_a_scalar_with_named_parts(name, p, z, noise):
    total, parts = methods.losses(name)(p, z, noise, MethodConfig(name=name), first=0)
    assert total.shape == () and bool(torch.isfinite(total))
    assert parts and "loss" not in parts, "the total has that name in metrics.jsonl"
    assert all(part.shape == () and bool(torch.isfinite(part)) for part in parts.values())


@pytest.mark.parametrize("name", methods.names())
def test_predictions_are_taught_and_targets_are_not(name, p, z, noise):
    total, _ = methods.losses(name)(p, z, noise, MethodConfig(name=name), first=0)
    total.backward()
    assert float(p.grad.abs().sum()) > 0
    assert z.grad is None


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("group", [1, 2])
def test_views_can_be_accumulated(name, group, p, z, noise):
    """The mean over groups of views is the whole: what `run.views_per_pass` relies on."""
    compute, config = methods.losses(name), MethodConfig(name=name)
    whole, _ = compute(p, z, noise, config, first=0)
    (expected,) = torch.autograd.grad(whole, p)
    pieces = [compute(p[i : i + group], z, noise, config, first=i)[0] * group / K for i in range(0, K, group)]
    (found,) = torch.autograd.grad(torch.stack(pieces).sum(), p)
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", methods.names())
def test_a_recipe_can_name_it(name):
    config = load("demo", [f"method.name={name}"])
    assert isinstance(config, PretrainConfig) and config.method.name == name
    assert methods.losses(name).__doc__
