"""Build a ResNet from an Architecture, with the parts of `model_zoo.blocks`. No other module builds one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.anatomy import BLOCKS, planes, stem_planes
from model_zoo.architecture import BASIC, DEEP, Architecture
from model_zoo.blocks import BasicBlock, Block, Bottleneck, ResNet

LAYERS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    name: (BasicBlock if name in BASIC else Bottleneck, blocks) for name, blocks in BLOCKS.items()
}


def same_padding(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (N, C, H, W) as TensorFlow's SAME: ceil(side / stride) outputs, an odd pixel at the end."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    (top, bottom), (left, right) = ((each // 2, each - each // 2) for each in total)
    return F.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's SAME padding and the tensors of nn.Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        return F.conv2d(same_padding(x, self.kernel_size[0], self.stride[0]), self.weight, stride=self.stride)


class SameMaxPool2d(nn.MaxPool2d):
    """A square max-pool with TensorFlow's SAME padding."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__(kernel, stride)
        self.side, self.step = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        return F.max_pool2d(same_padding(x, self.side, self.step, -torch.inf), self.side, self.step)


class Trunk(ResNet):
    """torchvision's ResNet without a head, initialised exactly as torchvision does."""

    def __init__(self, arch: Architecture) -> None:
        block, layers = LAYERS[arch.name]
        super().__init__(block, layers, groups=arch.groups, width_per_group=arch.base_width)
        stem = stem_planes(arch)[-1]
        if stem != 64:
            self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(stem)
        if arch.width != 1 or stem != 64:
            self.inplanes = stem
            for i, wide in enumerate(planes(arch)):
                setattr(self, f"layer{i + 1}", self.make_layer(block, wide, layers[i], stride=2 if i else 1))
        if arch.stem in DEEP:
            self.conv1 = _deep_stem(*stem_planes(arch))
        elif arch.stem != "7x7":
            self.conv1 = nn.Conv2d(3, stem, 3, stride=1, padding=1, bias=False)
        if arch.width != 1 or stem != 64 or arch.stem != "7x7":
            self.initialise()  # the layers replaced above
        self._set_pool(arch)
        for module in list(self.modules()):
            if arch.stride_in_1x1 and isinstance(module, Bottleneck) and module.stride != 1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
            if arch.avg_down and isinstance(module, BasicBlock | Bottleneck) and module.downsample is not None:
                module.downsample = _averaging(module.downsample)
        if arch.conv_padding == "same":
            _pad_as_tensorflow(self)

    def _set_pool(self, arch: Architecture) -> None:
        if arch.stem == "3x3-nopool":
            self.maxpool = nn.Identity()
        elif arch.pool_padding == "end":
            self.maxpool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2))
        elif arch.pool_padding == "same":
            self.maxpool = SameMaxPool2d(3, 2)


def _deep_stem(first: int, second: int, last: int) -> nn.Sequential:
    """Return three 3x3 convolutions; the norm after the last is the trunk's `bn1`, as timm names it."""
    return nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, last, 3, padding=1, bias=False),
    )


def _averaging(shortcut: nn.Sequential) -> nn.Sequential:
    """Return ResNet-D's shortcut: a 2x2 average takes over the convolution's stride (padding as in timm and mmcls)."""
    conv, norm = shortcut
    assert isinstance(conv, nn.Conv2d)
    strided, conv.stride = conv.stride != (1, 1), (1, 1)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if strided else nn.Identity()
    return nn.Sequential(pool, conv, norm)


def _pad_as_tensorflow(trunk: nn.Module) -> None:
    """Give every strided convolution SAME padding; at stride 1 both paddings are equal."""
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride != (1, 1):
                kernel, stride = child.kernel_size[0], child.stride[0]
                same = SameConv2d(child.in_channels, child.out_channels, kernel, stride, bias=False)
                same.weight = child.weight
                setattr(parent, name, same)


def build(arch: Architecture, seed: int | None = None) -> Trunk:
    """Return a newly initialised trunk; a `seed` makes it reproducible and leaves the global generator unchanged."""
    if seed is None:
        return Trunk(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(arch)
