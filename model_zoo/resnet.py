"""The only place that builds a ResNet: torchvision's, with the fields of an Architecture applied."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from model_zoo.architecture import Architecture

LAYERS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def same_padding(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """(N, C, H, W) padded as TensorFlow's SAME does: ceil(side / stride) outputs, the odd pixel at the end."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    (top, bottom), (left, right) = ((each // 2, each - each // 2) for each in total)
    return F.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's SAME padding; its tensors are those of nn.Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        return F.conv2d(same_padding(x, self.kernel_size[0], self.stride[0]), self.weight, stride=self.stride)


class SameMaxPool2d(nn.MaxPool2d):
    """A square max-pool with TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        return F.max_pool2d(same_padding(x, self.kernel_size, self.stride, -torch.inf), self.kernel_size, self.stride)


class Trunk(ResNet):
    """torchvision's ResNet without a head; initialised exactly as torchvision initialises it."""

    def __init__(self, arch: Architecture) -> None:
        block, layers = LAYERS[arch.name]
        super().__init__(block, list(layers))
        del self.fc
        stem = stem_planes(arch)
        if stem != 64:
            self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(stem)
        if arch.width != 1 or stem != 64:
            self.inplanes = stem
            planes = [round(64 * arch.width) * 2**i for i in range(4)]
            self.layer1 = self._make_layer(block, planes[0], layers[0])
            for i in (1, 2, 3):
                setattr(self, f"layer{i + 1}", self._make_layer(block, planes[i], layers[i], stride=2))
        if arch.stem != "7x7":
            self.conv1 = nn.Conv2d(3, stem, 3, stride=1, padding=1, bias=False)
        if arch.width != 1 or stem != 64 or arch.stem != "7x7":
            for module in self.modules():  # torchvision's initialisation for what was made anew
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if arch.stem == "3x3-nopool":
            self.maxpool = nn.Identity()
        elif arch.pool_padding == "end":
            self.maxpool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2))
        elif arch.pool_padding == "same":
            self.maxpool = SameMaxPool2d(3, 2)
        if arch.stride_in_1x1:
            for block_module in self.modules():
                if isinstance(block_module, Bottleneck) and block_module.stride != 1:
                    block_module.conv1.stride, block_module.conv2.stride = block_module.conv2.stride, (1, 1)
        if arch.conv_padding == "same":
            _pad_as_tensorflow(self)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> C2, C3, C4, C5 at strides 4, 8, 16, 32 (7x7 stem)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> globally average-pooled features (N, C)."""
        return torch.flatten(self.avgpool(self.stages(x)[-1]), 1)


def _pad_as_tensorflow(trunk: nn.Module) -> None:
    """Every strided convolution in place of its own with SAME padding; at stride 1 both paddings are alike."""
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride != (1, 1):
                same = SameConv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride, bias=False)
                same.weight = child.weight
                setattr(parent, name, same)


def build(arch: Architecture, seed: int | None = None) -> Trunk:
    """A freshly initialised trunk; with a `seed`, always the same one, without touching the global generator."""
    if seed is None:
        return Trunk(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(arch)


def stem_planes(arch: Architecture) -> int:
    """Channels of the first convolution."""
    return round(64 * arch.stem_width)


def feature_dim(arch: Architecture) -> int:
    """C of the pooled features."""
    block, _ = LAYERS[arch.name]
    return round(64 * arch.width) * 8 * block.expansion


@functools.lru_cache(maxsize=64)
def expected_shapes(arch: Architecture) -> Mapping[str, torch.Size]:
    """Name and shape of every tensor of the architecture, without allocating it."""
    with torch.device("meta"):
        return MappingProxyType({name: tensor.shape for name, tensor in Trunk(arch).state_dict().items()})
