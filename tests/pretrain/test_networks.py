"""The online and the target network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backbench.errors import ConfigError
from model_zoo.anatomy import feature_dim
from model_zoo.architecture import Architecture
from model_zoo.resnet import build
from pretrain.config import ModelConfig
from pretrain.networks import HeadSizes, Online, Target, WeightStandardizedLinear, mlp, two_mlps

NORMS = ("batch", "layer", "group", "group_ws")


class Trunk(nn.Module):
    """A backbone with a BatchNorm, small enough for exact comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def small_online(norm: str = "batch") -> Online:
    return Online(Trunk(), two_mlps(HeadSizes(4, 32, 6, norm))).double()


def views(count: int = 3) -> torch.Tensor:
    shift = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1, 1)  # every view has its own statistics
    return torch.randn(count, 5, 3, 8, 8, dtype=torch.float64) + shift


def projections(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = network(x)
    return found if isinstance(found, torch.Tensor) else found.z


def test_target_follows_by_an_exponential_moving_average():
    online = small_online()
    target = Target(online)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(2.0)
        for parameter in online.parameters():
            parameter.fill_(10.0)
    target.follow(online, 0.75)  # 0.75 * 2 + 0.25 * 10
    assert all(torch.allclose(p, torch.full_like(p, 4.0)) for p in target.parameters())
    target.follow(online, 0.5)  # 0.5 * 4 + 0.5 * 10
    assert all(torch.allclose(p, torch.full_like(p, 7.0)) for p in target.parameters())
    target.follow(online, 1.0)
    assert all(torch.allclose(p, torch.full_like(p, 7.0)) for p in target.parameters())
    assert all(torch.equal(p, torch.full_like(p, 10.0)) for p in online.parameters())


def test_target_pairs_parameters_by_name():
    online = small_online()
    target = Target(online)
    before = {name: p.clone() for name, p in target.named_parameters()}
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    target.follow(online, 0.9)
    theirs = dict(online.named_parameters())
    assert {name for name in theirs if not name.startswith("predictor.")} == set(before)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * before[name] + 0.1 * theirs[name], msg=name)


def test_target_starts_equal_and_is_not_shared():
    online = small_online()
    target = Target(online)
    assert not any(name.startswith("predictor") for name in target.state_dict())
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, online.state_dict()[name])
    with torch.no_grad():
        online.backbone.conv.weight.add_(1)
    assert not torch.equal(target.backbone.conv.weight, online.backbone.conv.weight)


def test_target_gets_no_gradient():
    online = small_online()
    target = Target(online)
    x = views()
    z = target(x)
    assert not z.requires_grad
    assert not any(p.requires_grad for p in target.parameters())
    (online(x).p - z).pow(2).sum().backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for p in online.parameters())


def test_targets_buffers_are_its_own():
    online = small_online()
    target = Target(online)
    x = views()
    online(x)
    assert not torch.equal(target.backbone.norm.running_mean, online.backbone.norm.running_mean)
    own = {name: b.clone() for name, b in target.named_buffers()}
    target.follow(online, 0.5)
    for name, buffer in target.named_buffers():
        assert torch.equal(buffer, own[name]), name
    target(x)
    assert not torch.equal(target.backbone.norm.running_mean, own["backbone.norm.running_mean"])


@pytest.mark.parametrize("make", [lambda online: online, Target], ids=["online", "target"])
def test_batch_norm_statistics_are_per_view(make):
    together = make(small_online())
    one_by_one = copy.deepcopy(together)
    x = views(3)
    found = projections(together, x)
    expected = torch.cat([projections(one_by_one, x[j : j + 1]) for j in range(3)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert int(together.backbone.norm.num_batches_tracked) == 3
    for (name, a), (_, b) in zip(together.named_buffers(), one_by_one.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    merged = together.projector(together.backbone(x.flatten(0, 1))).view(3, 5, -1)
    assert not torch.allclose(merged, expected)  # statistics over all views at once are another network


def test_running_statistics_are_those_of_every_view_in_turn():
    online = small_online()
    x = views(2)
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for view in x:
        activations = online.backbone.conv(view).transpose(0, 1).flatten(1)
        mean = 0.9 * mean + 0.1 * activations.mean(1)
        variance = 0.9 * variance + 0.1 * activations.var(1)
    online(x)
    torch.testing.assert_close(online.backbone.norm.running_mean, mean)
    torch.testing.assert_close(online.backbone.norm.running_var, variance)


@pytest.mark.parametrize(
    "backbone, hidden, outputs", [("resnet18", 512, 128), ("resnet34", 512, 128), ("resnet50", 2048, 256)]
)
def test_head_sizes_are_the_papers(backbone, hidden, outputs):
    assert ModelConfig(backbone=backbone).head_sizes() == (hidden, outputs)
    assert ModelConfig(backbone=backbone, hidden=24, outputs=12).head_sizes() == (24, 12)
    assert ModelConfig(backbone=backbone, hidden=24).head_sizes() == (24, outputs)


def test_heads_are_two_layer_mlps_on_a_resnet():
    arch = Architecture(name="resnet18")
    online = Online(build(arch), two_mlps(HeadSizes(feature_dim(arch), 32, 8, "batch")))
    shapes = {name: tuple(p.shape) for name, p in online.named_parameters() if "backbone" not in name and p.ndim == 2}
    assert shapes == {
        "projector.0.weight": (32, 512),
        "projector.3.weight": (8, 32),
        "predictor.0.weight": (32, 8),
        "predictor.3.weight": (8, 32),
    }
    x = torch.randn(2, 4, 3, 32, 32)
    assert online(x).p.shape == (2, 4, 8)
    assert Target(online)(x).shape == (2, 4, 8)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_builds_and_learns(norm):
    online = small_online(norm)
    online(views()).p.pow(2).sum().backward()
    for name, parameter in online.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name


def test_only_the_batch_norm_head_couples_the_samples():
    x = torch.randn(6, 8, dtype=torch.float64)
    for norm in NORMS:
        head = mlp(8, 32, 4, norm).double()
        alone = torch.allclose(head(x)[:3], head(x[:3]))
        assert alone == (norm != "batch"), norm


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_hidden_sizes_need_not_fit_a_norm_that_is_not_used(norm):
    assert mlp(8, 24, 4, norm)(torch.randn(5, 8)).shape == (5, 4)


def test_group_ws_standardises_the_weights():
    layer = WeightStandardizedLinear(40, 7)
    with torch.no_grad():
        layer.weight.mul_(3).add_(5)
        used = layer(torch.eye(40)) - layer.bias  # (in, out): the weights as they are applied
    torch.testing.assert_close(used.mean(0), torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(used.pow(2).sum(0), torch.full((7,), 39 / 40), atol=1e-3, rtol=0)
    for row, given in zip(used.T, layer.weight, strict=True):
        torch.testing.assert_close(row, (given - given.mean()) / (given.std() * 40**0.5), atol=1e-5, rtol=0)
    assert sum(isinstance(m, WeightStandardizedLinear) for m in mlp(8, 32, 4, "group_ws")) == 2
    assert not any(isinstance(m, WeightStandardizedLinear) for m in mlp(8, 32, 4, "group"))


@pytest.mark.parametrize("last, learned", [("plain", ()), ("scaled", ("weight",))])
@pytest.mark.parametrize("norm", NORMS)
def test_a_last_norm_follows_a_layer_without_a_bias_and_never_shifts(norm, last, learned):
    head = mlp(8, 32, 48, norm, layers=3, last=last)
    linear, end = head[-2], head[-1]
    assert linear.bias is None
    assert tuple(name for name, p in end.named_parameters() if p.requires_grad) == learned
    found = head(torch.randn(64, 8))
    dimension = 0 if norm == "batch" else 1
    assert found.mean(dimension).abs().max() < 1e-5, "over the images, or over an image's values"


def test_a_head_without_norms_has_biases_and_linear_layers_only():
    head = mlp(8, 32, 48, "none", layers=3, bias=False, last="plain")
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)) for layer in head)


@pytest.mark.parametrize("width", [16, 24])
def test_a_width_that_has_no_16_groups_says_what_to_change(width):
    with pytest.raises(
        ConfigError, match=rf"over {width} values .* 16 groups of model\.norm=group; make model\.hidden"
    ):
        mlp(8, 32, width, "group", last="plain")
