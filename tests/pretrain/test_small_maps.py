"""Convolutions over small maps against `nn.Conv2d`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from pretrain import small_maps
from pretrain.small_maps import use_small_maps

# (geometry, size of the map, whether the output is smaller than the kernel)
CASES = [
    (dict(kernel_size=3, padding=1, bias=False), 1, True),
    (dict(kernel_size=3, padding=1, bias=False), 2, True),
    (dict(kernel_size=3, padding=1, bias=False), 3, False),
    (dict(kernel_size=3, padding=1, stride=2, bias=False), 3, True),
    (dict(kernel_size=3, padding=2, dilation=2, bias=False), 2, True),
    (dict(kernel_size=(3, 2), padding=(1, 0), stride=(2, 1), bias=False), 3, True),
    (dict(kernel_size=7, padding=3, stride=2, bias=False), 8, True),
    (dict(kernel_size=1, bias=False), 1, False),
    (dict(kernel_size=3, padding=1), 1, False),
    (dict(kernel_size=3, padding=1, groups=2, bias=False), 1, False),
    (dict(kernel_size=3, padding="same", bias=False), 1, False),
    (dict(kernel_size=3, padding=1, padding_mode="replicate", bias=False), 1, False),
]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs that went through the matrix product."""
    seen: list[torch.Tensor] = []
    apply = small_maps._Convolution.apply
    monkeypatch.setattr(small_maps._Convolution, "apply", lambda x, *rest: seen.append(x) or apply(x, *rest))
    return seen


@pytest.mark.quick
@pytest.mark.parametrize(("geometry", "size", "small"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_equal_those_of_a_convolution(geometry, size, small, layout, products):
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, **geometry).double().to(memory_format=layout)
    ours = nn.Sequential(copy.deepcopy(theirs))
    use_small_maps(ours)
    x = torch.randn(5, 4, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    images = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, found = theirs(images[0]), ours(images[1])
    assert torch.equal(found, expected)
    to_outputs = torch.randn_like(expected)
    expected.backward(to_outputs)
    found.backward(to_outputs)
    assert bool(products) == small
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[0].weight.grad, theirs.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.quick
def test_without_gradients_and_under_autocast_it_is_a_plain_convolution(products):
    layer = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    use_small_maps(layer)
    x = torch.randn(2, 4, 1, 1)
    with torch.no_grad():
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not products
    layer(x)
    assert len(products) == 1


@pytest.mark.quick
def test_a_network_keeps_its_names_and_gets_the_same_gradients(products):
    torch.manual_seed(0)
    theirs = resnet18().double()
    ours = copy.deepcopy(theirs)
    use_small_maps(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for network in (theirs, ours):
        network(x).square().sum().backward()
    assert len(products) == 8  # the third stage on 2 x 2 pixels and the fourth on one
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9)
