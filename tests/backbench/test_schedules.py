"""Learning rate, target decay and LARS against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import Lars
from torch import nn

from backbench.schedules import lr_at, parameter_groups, tau_at


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 0.3),
        (5, 1.5),
        (9, 2.7),
        (10, 3.0),  # the peak, at the end of the warm-up
        (55, 1.5),  # half-way between 10 and 100
        (40, 3 * 0.75),  # a third of the way: (1 + cos 60) / 2
        (70, 3 * 0.25),
        (100, 0.0),  # the last of 101 steps
    ],
)
def test_learning_rate_by_hand(step, expected):
    assert lr_at(step, total=101, warmup=10, peak=3.0) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_rises_then_falls_and_never_restarts():
    rates = [lr_at(step, total=200, warmup=20, peak=1.0) for step in range(200)]
    assert rates[:21] == sorted(set(rates[:21]))
    assert rates[20:] == sorted(set(rates[20:]), reverse=True)
    assert max(rates) == rates[20] == 1.0


def test_learning_rate_equals_torchs_cosine():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=49)
    for step in range(50):
        assert lr_at(step, total=50, warmup=0, peak=0.8) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (5, 4)])
def test_short_runs_reach_the_peak_and_stay_finite(total, warmup):
    rates = [lr_at(step, total=total, warmup=warmup, peak=2.0) for step in range(total)]
    assert rates == pytest.approx([2.0 * step / max(warmup, 1) if step < warmup else 2.0 for step in range(total)])


def test_learning_rate_past_the_end_stays_zero():
    assert lr_at(500, total=101, warmup=10, peak=3.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("base", [0.99, 0.996, 0.0])
def test_target_decay_by_hand(base):
    assert tau_at(0, total=101, base=base) == pytest.approx(base, abs=1e-15)
    assert tau_at(50, total=101, base=base) == pytest.approx((1 + base) / 2)
    assert tau_at(100, total=101, base=base) == 1.0
    third = 1 - (1 - base) * 0.25  # at two thirds cos is -1/2
    assert tau_at(60, total=91, base=base) == pytest.approx(third)
    values = [tau_at(step, total=101, base=base) for step in range(101)]
    assert values == sorted(values)


def test_target_decay_of_a_single_step():
    assert tau_at(0, total=1, base=0.99) == pytest.approx(0.99)


def test_target_rate_may_end_below_1_or_stay_constant():
    ends = [tau_at(step, total=101, base=0.99, final=0.999) for step in (0, 100)]
    assert ends == pytest.approx([0.99, 0.999], abs=1e-15)
    assert {tau_at(step, total=101, base=0.999, final=0.999) for step in range(101)} == {0.999}


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 1, bias=True)
        self.fixed = nn.Linear(2, 2).requires_grad_(False)


def test_parameter_groups():
    module = Tiny()
    names = {id(p): name for name, p in module.named_parameters()}
    adapted, plain = parameter_groups(module, 1e-5)
    assert [names[id(p)] for p in adapted["params"]] == ["conv.weight", "head.weight"]
    assert [names[id(p)] for p in plain["params"]] == ["conv.bias", "norm.weight", "norm.bias", "head.bias"]
    assert (adapted["weight_decay"], adapted["always_adapt"]) == (1e-5, True)
    assert (plain["weight_decay"], plain["always_adapt"]) == (0.0, False)


@pytest.mark.parametrize("weight_decay", [1e-2, 0.0])
def test_lars_steps_by_hand(weight_decay):
    module = nn.Linear(2, 1).double()
    weight, bias = [[3.0, -4.0]], [0.5]  # the weight's norm is 5
    gradients = [([6.0, 8.0], 2.0), ([0.0, 0.5], -1.0)]  # norms 10 and 1/2
    lr, momentum, trust, eps = 0.1, 0.9, 0.02, 1e-8
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(bias))
    groups = parameter_groups(module, weight_decay)
    optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust, nesterov=False)
    w, b, velocity, bias_velocity = [3.0, -4.0], 0.5, [0.0, 0.0], 0.0
    for gradient, bias_gradient in gradients:
        module.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        module.bias.grad = torch.tensor([bias_gradient], dtype=torch.float64)
        optimizer.step()
        norm_w, norm_g = math.hypot(*w), math.hypot(*gradient)
        ratio = trust * norm_w / (norm_g + weight_decay * norm_w + eps)
        update = [ratio * (g + weight_decay * x) for g, x in zip(gradient, w, strict=True)]
        velocity = [momentum * v + u for v, u in zip(velocity, update, strict=True)]
        w = [x - lr * v for x, v in zip(w, velocity, strict=True)]
        bias_velocity = momentum * bias_velocity + bias_gradient  # plain SGD: no adaptation, no decay
        b -= lr * bias_velocity
        assert module.weight.tolist()[0] == pytest.approx(w, rel=1e-9)
        assert module.bias.item() == pytest.approx(b, rel=1e-12)


def test_the_first_lars_step_in_numbers():
    module = nn.Linear(2, 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, -4.0]]))
        module.bias.fill_(0.5)
    optimizer = Lars(parameter_groups(module, 0.0), lr=0.1, momentum=0.9, trust_coeff=0.02)
    module.weight.grad = torch.tensor([[6.0, 8.0]], dtype=torch.float64)
    module.bias.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    # trust 0.02 x 5 / 10 = 0.01; weight - 0.1 x 0.01 x (6, 8); bias - 0.1 x 2
    assert module.weight.tolist()[0] == pytest.approx([2.994, -4.008], rel=1e-8)
    assert module.bias.item() == pytest.approx(0.3)
