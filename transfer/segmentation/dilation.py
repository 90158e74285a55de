"""Strides and dilations of a ResNet's stages: what an engine's dilated ResNet is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from model_zoo.blocks import Bottleneck, ResNet


def dilated(trunk: ResNet, strides: Sequence[int], dilations: Sequence[int]) -> ResNet:
    """Change a trunk's stages in place and return it; the weights stay.

    A stage's first block has half of its dilation, as `replace_stride_with_dilation` does (torchvision/models/resnet.py,
    `_make_layer`). torchvision has no dilated basic blocks; here the first of their two 3x3 convolutions is dilated, as in
    mmseg/models/backbones/resnet.py, `BasicBlock`.

    Args:
        strides: of the four stages, 1 or 2.
        dilations: of the four stages.
    """
    stages: list[Any] = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
    for blocks, stride, dilation in zip(stages, strides, dilations, strict=True):
        if stride == 1:
            _unstride(blocks[0])
        for number, block in enumerate(blocks):
            here = max(1, dilation // 2) if number == 0 else dilation
            conv = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            conv.dilation = conv.padding = (here, here)
    return trunk


def _unstride(block: nn.Module) -> None:
    """Set every stride of a block to 1. The average pooling of ResNet-D's shortcut has the stride as its size, so it goes."""
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                child.stride = (1, 1)
            elif isinstance(child, nn.AvgPool2d):
                setattr(parent, name, nn.Identity())
